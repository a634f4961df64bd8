"""Full and span contexts: two ways to make the argument that every forward pass reads."""

import pytest
import torch

from selfalign.model.context import EmbodimentContext
from selfalign.model.contexts import FullContexts, SpanContexts, make_contexts
from selfalign.model.policy import VLA
from selfalign.model.ttt import TTTConfig
from small_model import make_batch, randomise, small_config


@pytest.fixture
def prior():
    torch.manual_seed(0)
    return randomise(VLA(small_config())).prior().detach()


@pytest.fixture(params=[None, 3], ids=["full", "span"])
def contexts(request, prior):
    return make_contexts(prior, request.param)


def random_coordinates(contexts, prior, slots=None):
    return tuple(torch.randn_like(c) for c in contexts.zeros(prior, slots))


def test_zeros_are_the_start(contexts, prior):
    context = contexts.context(prior, contexts.zeros(prior))
    assert all(torch.equal(a, b) for a, b in zip(context.tensors, prior.tensors, strict=True))


def test_slots_are_contexts_side_by_side(contexts, prior):
    coordinates = random_coordinates(contexts, prior, slots=4)
    together = contexts.context(prior, coordinates)
    assert together.batched
    for slot in range(4):
        alone = contexts.context(prior, [c[slot] for c in coordinates])
        torch.testing.assert_close(together.index(slot).tensors, alone.tensors)


@pytest.mark.parametrize("slots", [None, 4])
def test_a_context_knows_its_coordinates(contexts, prior, slots):
    coordinates = random_coordinates(contexts, prior, slots)
    found = contexts.locate(prior, contexts.context(prior, coordinates))
    torch.testing.assert_close(found, coordinates, rtol=1e-3, atol=1e-4)


def test_a_span_context_is_the_start_plus_a_combination_of_directions(prior):
    span = SpanContexts(prior, rank=2)
    context = span.context(prior, (torch.tensor([2.0, -0.5]),))
    for w, w0, basis in zip(context.tensors, prior.tensors, span.basis, strict=True):
        torch.testing.assert_close(w, w0 + 2 * basis[0] - 0.5 * basis[1])


def test_the_gradient_of_z_is_the_gradient_of_w_along_each_direction():
    torch.manual_seed(0)
    model = randomise(VLA(small_config(ttt=TTTConfig(num_heads=2, head_dim=8, span=3))))
    prior, batch = model.prior().detach(), make_batch(model)
    leaf = model.contexts.context(prior, (torch.randn(3),)).leaf()
    z = tuple(c.requires_grad_() for c in model.contexts.locate(prior, leaf))

    def loss(context):
        torch.manual_seed(1)
        return model.losses(batch, context, parts=("alignment",)).total

    (found,) = torch.autograd.grad(loss(model.contexts.context(prior, z)), z)
    of_weights = torch.autograd.grad(loss(leaf), leaf.tensors)
    expected = [sum((g * b[k]).sum() for g, b in zip(of_weights, model.contexts.basis, strict=True)) for k in range(3)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_a_random_update_has_the_norm_and_stays_where_fits_go(contexts, prior):
    moved = contexts.random(prior, 2.5, generator=torch.Generator().manual_seed(0))
    assert moved.distance(prior) == pytest.approx(2.5, rel=1e-4)
    again = contexts.context(prior, contexts.locate(prior, moved))
    torch.testing.assert_close(again.tensors, moved.tensors, rtol=1e-3, atol=1e-4)


def test_wrong_spans_are_refused(prior):
    with pytest.raises(ValueError, match="rank of at least 1"):
        SpanContexts(prior, 0)
    with pytest.raises(ValueError, match="0 TTT layers"):
        make_contexts(EmbodimentContext((), ()), 4)
    assert type(make_contexts(prior, None)) is FullContexts


def test_a_distance_counts_every_number_of_w_and_b(prior):
    moved = prior.with_tensors([*(w + 3.0 for w in prior.W1), *(b - 2.0 for b in prior.b1)])
    weights, biases = (sum(t.numel() for t in tensors) for tensors in (prior.W1, prior.b1))
    assert moved.distance(prior) == pytest.approx((9.0 * weights + 4.0 * biases) ** 0.5, rel=1e-5)


def test_a_perturbation_has_its_norm_over_all_tensors_together(prior):
    moved = prior.perturbed(2.5, generator=torch.Generator().manual_seed(0))
    away = torch.cat([(a - b).flatten() for a, b in zip(moved.tensors, prior.tensors, strict=True)])
    assert float(away.norm()) == pytest.approx(2.5, rel=1e-4)
    again = prior.perturbed(2.5, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, moved.tensors, strict=True))
