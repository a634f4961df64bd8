"""The stored context that explains the play best, and nothing fitted."""

import pytest
import torch

from align.factory import make_play
from baselines.factory import given
from selfalign.align.offline import AlignConfig, align
from selfalign.align.store import ContextStore
from selfalign.baselines import fit


def test_it_takes_the_context_that_explains_the_play_best_with_the_plays_own_statistics(tmp_path):
    policy, play, _ = given()
    own = align(policy, play, config=AlignConfig(steps=40, seed=1), progress=False).fitted
    store = ContextStore(tmp_path)
    store.save(own, "alike")
    for number in range(3):
        store.save(own.perturbed(2.0, generator=torch.Generator().manual_seed(number)), f"other{number}")
    adapted = fit("nearest", policy, play, config={"path": str(tmp_path)})
    assert adapted.history["nearest"] == "alike" and adapted.policy is policy
    assert adapted.context.distance(own) == 0
    wider = make_play(5, 14, seed=9)
    assert (
        fit("nearest", policy, wider, config={"path": str(tmp_path)}).context.info.norm_stats == wider.stats().to_dict()
    )


def test_a_store_is_needed_and_must_hold_something(tmp_path):
    policy, play, _ = given()
    with pytest.raises(ValueError, match="give the `path` of a store"):
        fit("nearest", policy, play)
    with pytest.raises(ValueError, match="none of the 0 contexts in"):
        fit("nearest", policy, play, config={"path": str(tmp_path / "empty")})
