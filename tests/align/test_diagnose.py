"""The cosine between gradients: what it is, and that measuring it changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from align.rehearsing import seeded_state
from selfalign.align.diagnose import aside
from selfalign.train.step import train_step


@pytest.mark.parametrize("span", [None, 5])
def test_the_cosine_is_that_of_each_slots_gradients(small_sources, span):
    state = seeded_state(small_sources, max_age=50, span=span)
    for _ in range(2):
        train_step(state)
    rehearsal = state.objective
    measured = rehearsal.diagnose()["ttt/gradient_cosine"]

    model, cosines = state.model, []
    with aside([0, 17, rehearsal.lives.step]) as rng:
        batch = rehearsal.batches.draw_from(rehearsal.lives.bodies, rng)
    for slot, part in enumerate(batch.split(3)):
        own = model.contexts.context(model.prior(), [c[slot] for c in rehearsal.coordinates]).leaf()
        gradients = []
        for samples, name in ((part.play, "alignment"), (part.demonstrations, "action")):
            loss = model.losses(samples.transition, own, noise=samples.noise, time=samples.time, parts=(name,)).total
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, own.tensors)]))
        a, b = gradients
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    assert measured == pytest.approx(sum(cosines) / 3, abs=1e-4)
    assert max(map(abs, cosines)) > 1e-3


@pytest.mark.parametrize("scheme", ["rehearsal", "per_body", "global"])
def test_measuring_leaves_the_training_as_it_is(small_sources, scheme):
    plain, measured = seeded_state(small_sources, scheme), None
    expected = [train_step(plain) for _ in range(3)]
    measured = seeded_state(small_sources, scheme)
    for numbers in expected:
        assert train_step(measured) == numbers
        assert -1 <= measured.objective.diagnose()["ttt/gradient_cosine"] <= 1
        assert measured.objective.diagnose() == measured.objective.diagnose()


def test_the_cosine_of_fixed_bodies_is_taken_at_their_own_contexts(small_sources):
    state = seeded_state(small_sources, "per_body")
    train_step(state)
    plain, model = state.objective, state.model
    with torch.no_grad():
        for table in plain.table:
            table += torch.randn_like(table)
    measured = plain.diagnose()["ttt/gradient_cosine"]

    cosines, chosen = [], plain.drawn.chosen
    with aside([0, 17, plain.drawn.step]) as rng:
        batch = plain.batches.draw_from([plain.drawn.bodies[i] for i in chosen], rng)
    for body, part in zip(chosen, batch.split(3), strict=True):
        own = model.contexts.context(model.prior(), [table[body] for table in plain.table]).leaf()
        gradients = []
        for samples, name in ((part.play, "alignment"), (part.demonstrations, "action")):
            loss = model.losses(samples.transition, own, noise=samples.noise, time=samples.time, parts=(name,)).total
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, own.tensors)]))
        cosines.append(float(F.cosine_similarity(*gradients, dim=0)))
    assert measured == pytest.approx(sum(cosines) / 3, abs=1e-4)
