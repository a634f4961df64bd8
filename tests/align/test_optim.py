"""`FastAdam` against `torch.optim.Adam` and `clip_grad_norm_`."""

import pytest
import torch

from selfalign.align.optim import FastAdam
from selfalign.model.context import EmbodimentContext


def make_context(slots: int | None = None) -> EmbodimentContext:
    lead = () if slots is None else (slots,)
    return EmbodimentContext(
        tuple(torch.randn(*lead, 2, 3, 3) for _ in range(2)), tuple(torch.randn(*lead, 2, 1, 3) for _ in range(2))
    )


def random_grads(context: EmbodimentContext) -> list[torch.Tensor]:
    return [torch.randn_like(t) for t in context.tensors]


def run_torch(context: EmbodimentContext, grads_per_step, clip_norm: float | None, rate=lambda step: 1.0, **options):
    leaf = context.leaf()
    adam = torch.optim.Adam(leaf.tensors, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    for grads in grads_per_step:
        for tensor, grad in zip(leaf.tensors, grads, strict=True):
            tensor.grad = grad.clone()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaf.tensors, clip_norm)
        adam.step()
        schedule.step()
    return leaf.detach()


@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_a_single_context_moves_as_with_torch(clip_norm: float | None):
    context = make_context()
    steps = [random_grads(context) for _ in range(12)]
    adam = FastAdam(1e-2, (0.9, 0.99), 1e-8, clip_norm)
    moved, state = context.tensors, adam.init(context.tensors, slots=context.batched)
    for grads in steps:
        moved, state = adam.step(moved, grads, state)
    expected = run_torch(context, steps, clip_norm, lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    torch.testing.assert_close(moved, expected.tensors, rtol=0, atol=1e-6)
    assert state.count.item() == 12


def test_a_falling_rate_is_torchs_with_that_schedule():
    context = make_context()
    steps = [random_grads(context) for _ in range(12)]
    adam = FastAdam(1e-2, decay_steps=4)
    moved, state = context.tensors, adam.init(context.tensors)
    for grads in steps:
        moved, state = adam.step(moved, grads, state)
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "rate": lambda step: (1 + step / 4) ** -0.5}
    torch.testing.assert_close(moved, run_torch(context, steps, None, **options).tensors, rtol=0, atol=1e-6)


def test_slots_of_different_ages_move_as_they_would_alone():
    slots, ages = 3, [0, 2, 5]
    context, adam = make_context(slots), FastAdam(3e-2, (0.8, 0.95), 1e-8, clip_norm=0.5)
    steps = [
        [g * 10.0 ** torch.arange(-1, slots - 1).reshape(-1, 1, 1, 1) for g in random_grads(context)] for _ in range(6)
    ]
    state, moved = adam.init(context.tensors, slots=context.batched), context.tensors
    for i, grads in enumerate(steps):
        fresh = torch.tensor([i == age for age in ages])
        state = state.reset(fresh)
        keep = fresh.reshape(-1, 1, 1, 1)
        moved = tuple(torch.where(keep, a, b) for a, b in zip(context.tensors, moved, strict=True))
        moved, state = adam.step(moved, grads, state)
    assert state.count.tolist() == [6, 4, 1]
    for slot, age in enumerate(ages):
        own = [[g[slot] for g in grads] for grads in steps[age:]]
        expected = run_torch(context.index(slot), own, 0.5, lr=3e-2, betas=(0.8, 0.95), eps=1e-8)
        torch.testing.assert_close(tuple(c[slot] for c in moved), expected.tensors, rtol=0, atol=1e-6)


def test_a_step_changes_nothing_in_place():
    context, adam = make_context(2), FastAdam()
    state, before = adam.init(context.tensors, slots=True), context.clone()
    adam.step(context.tensors, random_grads(context), state)
    assert all(torch.equal(a, b) for a, b in zip(context.tensors, before.tensors, strict=True))
    assert not any(t.any() for t in (*state.first, *state.second, state.count))


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"eps": -1e-8}, {"clip_norm": 0.0}, {"decay_steps": 0}]
)
def test_wrong_settings_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=r"must be|needs"):
        FastAdam(**wrong)
