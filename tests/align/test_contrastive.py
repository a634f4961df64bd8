"""The contrastive loss: its formula, its groups of slots, and what it moves."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from align.rehearsing import make_sources, state_for
from selfalign.align.contrastive import add_contrast, contrast_group, info_nce
from selfalign.align.settings import ContrastiveConfig
from selfalign.data.perturb import LinearFrame
from selfalign.data.virtual import FrameFeatures, PlayUse
from selfalign.model.losses import Losses
from selfalign.train import checkpoint
from selfalign.train.step import train_step

CONTRAST = ContrastiveConfig(weight=0.5, negatives=2)


@pytest.fixture
def coloured_sources(small_cache):
    sources = make_sources(small_cache)
    plain = sources.features
    other = FrameFeatures({c: values + 1 for c, values in plain.tokens.items()}, plain.next_features - 1)
    sources.features = dataclasses.replace(plain, looks=(other,))
    return sources


def state_with_contrast(sources, **changes):
    return state_for(sources, slots=8, contrastive=CONTRAST, **changes)


def test_info_nce_is_the_formula():
    generator = np.random.default_rng(0)
    anchor, positive = generator.normal(size=(2, 3, 5))
    negatives = generator.normal(size=(3, 4, 5))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = []
    for a, p, ns in zip(anchor, positive, negatives, strict=True):
        scores = np.exp(np.array([cosine(a, p), *(cosine(a, n) for n in ns)]) / 0.07)
        expected.append(-np.log(scores[0] / scores.sum()))
    found = info_nce(*(torch.from_numpy(x) for x in (anchor, positive, negatives)))
    np.testing.assert_allclose(found.numpy(), expected)


def test_a_group_is_a_body_its_recoloured_twin_and_other_frames_of_the_same_play(coloured_sources):
    bodies = state_with_contrast(coloured_sources).objective.lives.bodies
    for anchor, positive, *negatives in (bodies[:4], bodies[4:]):
        assert anchor.look == 0 and positive.look == 1
        assert positive.perturbation == anchor.perturbation and positive.play is anchor.play
        for negative in negatives:
            assert negative.rig == anchor.rig and negative.perturbation != anchor.perturbation
            assert (negative.play_episodes == anchor.play_episodes).all() and negative.look == 0


def test_a_recoloured_body_sees_the_recoloured_frames(coloured_sources):
    anchor, positive = state_with_contrast(coloured_sources).objective.lives.bodies[:2]
    seen = [coloured_sources.play_batch([b], 3, np.random.default_rng(0)) for b in (anchor, positive)]
    plain, other = (batch.observation.image_features["scene"] for batch in seen)
    torch.testing.assert_close(other, plain + 1, rtol=0, atol=2e-3)  # half precision
    torch.testing.assert_close(seen[1].next_features, seen[0].next_features - 1)
    mixed = coloured_sources.play_batch([anchor, positive], 3, np.random.default_rng(0))
    assert torch.equal(mixed.observation.image_features["scene"][:3], plain)


def test_contrast_moves_contexts_once_they_have_left_the_prior(coloured_sources):
    state = state_with_contrast(coloured_sources, max_age=50)
    rehearsal = state.objective
    assert train_step(state)["loss/contrastive"] == 0
    (part,) = rehearsal.draw(1)
    losses = rehearsal.losses(part)
    ways = torch.cat([c.flatten(1) for c in rehearsal._leaves], dim=1)
    nce = [info_nce(w[:1], w[1:2], w[None, 2:]) for w in ways.split(4)]
    torch.testing.assert_close(losses.contrastive, torch.cat(nce).mean())
    without = dataclasses.replace(losses, contrastive=None)
    parts = [getattr(without, name) for name in ("action", "perception", "dynamics", "inverse", "ttt")]
    torch.testing.assert_close(losses.total, sum(parts) + 0.5 * losses.contrastive)
    losses.contrastive.backward()
    assert all(c.grad.flatten(1).norm(dim=1).min() > 0 for c in rehearsal._leaves)


def test_groups_live_and_die_together_and_resume(coloured_sources, tmp_path):
    state = state_with_contrast(coloured_sources, max_age=3, total=12)
    for _ in range(6):
        before = list(state.objective.lives.bodies)
        train_step(state)
        kept = [a is b for a, b in zip(before, state.objective.lives.bodies, strict=True)]
        assert kept[:4] in ([True] * 4, [False] * 4) and kept[4:] in ([True] * 4, [False] * 4)
    path, expected = checkpoint.save(state, tmp_path), train_step(state)
    resumed = state_with_contrast(coloured_sources, max_age=3, total=12)
    checkpoint.restore(resumed, path)
    assert [b.look for b in resumed.objective.lives.bodies] == [0, 1, 0, 0] * 2
    assert train_step(resumed) == expected


def test_slots_that_are_no_groups_are_refused(coloured_sources):
    state = state_for(coloured_sources, slots=6, contrastive=CONTRAST)
    with pytest.raises(ValueError, match="6 slots are not groups of 4"):
        train_step(state)


def test_schemes_without_rehearsal_have_no_contrast(coloured_sources):
    with pytest.raises(ValueError, match="the scheme 'global' has none"):
        state_for(coloured_sources, "global", slots=8, contrastive=CONTRAST)


def test_contrast_needs_recoloured_features(small_sources):
    with pytest.raises(ValueError, match="needs features of frames that look so"):
        train_step(state_with_contrast(small_sources))


def test_contrast_does_not_move_the_prior(coloured_sources):
    state = state_with_contrast(coloured_sources, max_age=50)
    train_step(state)
    rehearsal = state.objective
    losses = rehearsal.losses(*rehearsal.draw(1))
    given = torch.autograd.grad(
        losses.contrastive, [*state.model.prior().tensors, *rehearsal._leaves], allow_unused=True
    )
    layers = len(state.model.prior().tensors)
    assert all(g is None or not g.any() for g in given[:layers]) and all(g.any() for g in given[layers:])


def test_contrast_has_the_temperature_of_its_settings():
    ways, moved = torch.randn(8, 5), np.array([True] * 4 + [False] * 4)
    config = dataclasses.replace(CONTRAST, temperature=0.5)
    found = add_contrast(Losses(torch.tensor(1.0)), ways, moved, config)
    similarities = torch.stack([F.cosine_similarity(ways[0], other, dim=0) for other in ways[1:4]])
    expected = F.cross_entropy(similarities / 0.5, torch.tensor(0))
    torch.testing.assert_close(found.contrastive, expected)
    torch.testing.assert_close(found.total, 1 + config.weight * expected)


def test_negatives_share_the_units_of_their_anchor_and_are_as_wide_as_the_training(small_cache):
    sources, rng = make_sources(small_cache, play=PlayUse(unit_width=1.0)), np.random.default_rng(0)
    body = sources.sample(rng)
    assert body.units is not None
    group = contrast_group(body, sources, CONTRAST, rng, 0.0)
    assert [other.units for other in group] == [body.units] * 4
    assert all(other.perturbation.action_frame == LinearFrame() for other in group[2:])
