"""Losses on rigs that training does not see."""

import numpy as np
import pytest
import torch

from align.rehearsing import make_sources, rehearsal_config, seeded_state, state_for
from selfalign.align.heldout import HeldOut, HeldOutConfig, hold_out
from selfalign.model.losses import LossWeights
from selfalign.train.step import OptimConfig, train_step
from selfalign.train.world import ALONE


def held_out(cache, state, align_steps: int = 3, **changes) -> HeldOut:
    sources = make_sources(cache, rigs=np.array([1]))
    config = HeldOutConfig(rigs=1, bodies=2, align_steps=align_steps)
    return HeldOut(state.model, sources, rehearsal_config(learning_rate=0.02, **changes), config, ALONE)


def test_rigs_are_held_out_by_the_seed():
    rigs = np.arange(10)
    training, held = hold_out(rigs, 3, seed=0)
    assert len(held) == 3 and sorted([*training, *held]) == list(range(10))
    assert list(hold_out(rigs, 3, seed=0)[1]) == list(held) != list(hold_out(rigs, 3, seed=1)[1])
    assert list(hold_out(rigs, 0, seed=0)[0]) == list(range(10))
    with pytest.raises(ValueError, match="of 10 rigs, 10 cannot be held out"):
        hold_out(rigs, 10, seed=0)


def test_a_measurement_repeats_and_leaves_the_training_as_it_is(small_cache, small_sources):
    expected = train_step(seeded_state(small_sources))
    state = seeded_state(small_sources)
    validate = held_out(small_cache, state)
    torch.manual_seed(3)  # the sources were made meanwhile
    first = validate(state)
    assert validate(state) == first
    assert train_step(state) == expected
    assert validate(state) != first
    assert set(first) == {
        f"val/{when}/{loss}"
        for when in ("before", "after")
        for loss in ("action", "ttt", "perception", "dynamics", "inverse")
    }


def test_aligning_lowers_what_it_is_fitted_to(small_cache, small_sources):
    state = seeded_state(small_sources)
    numbers = held_out(small_cache, state, align_steps=40)(state)
    parts = ("ttt", "perception", "dynamics", "inverse")
    before, after = (sum(numbers[f"val/{when}/{part}"] for part in parts) for when in ("before", "after"))
    assert after < before
    unaligned = held_out(small_cache, state, align_steps=0)(state)
    assert all(unaligned[f"val/before/{part}"] == unaligned[f"val/after/{part}"] for part in (*parts, "action"))


@pytest.mark.parametrize(
    "changes",
    [{"weights": LossWeights(action=50.0)}, {"widen_steps": 1000}, {"source_bodies": 3}],
    ids=["the action loss moves no context", "bodies have the full width", "bodies are none of the training's"],
)
def test_what_does_not_belong_to_aligning_a_new_body_changes_nothing(small_cache, small_sources, changes):
    state = seeded_state(small_sources)
    assert held_out(small_cache, state, **changes)(state) == held_out(small_cache, state)(state)


def test_averaged_weights_are_measured_where_they_are_kept(small_cache, small_sources):
    state = state_for(small_sources, optim=OptimConfig(warmup_steps=2, ema_decay=0.99))
    validate = held_out(small_cache, state, align_steps=0)
    fresh = validate(state)
    for _ in range(3):
        train_step(state)
    averaged, latest = validate(state), validate.measure()
    distance = {name: (abs(averaged[name] - fresh[name]), abs(latest[name] - fresh[name])) for name in fresh}
    assert all(near < 0.5 * far for near, far in distance.values())
