"""Speed and temperature: what they do to actions, who may change them, and that the checkpoint carries them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from align.factory import HORIZON, make_episode, make_play, raw_observation, small_policy
from calibrations import make_calibration
from selfalign.acting import Acting
from selfalign.align.offline import AlignConfig, align
from selfalign.checkpoint import load, save_checkpoint, set_acting, set_calibration
from selfalign.data.normalize import NormStats
from selfalign.model.weights import read_json, write_json
from selfalign.policy import Policy
from selfalign.robots.protocol import Axis, Description
from selfalign.serve.batching import Query, infer
from selfalign.serve.contexts import ContextTable
from selfalign.sim.bodies import ActionSpace, BodySpec
from serve.serving import observation, write_contexts

MOVED = (True, False, True)
FAST = Acting(speed=1.5, temperature=0.5)


@pytest.fixture
def policy() -> Policy:
    return small_policy()


@pytest.fixture
def stats() -> NormStats:
    return replace(make_play().stats(), displacements=MOVED)


def test_temperature_scales_the_noise_and_speed_the_displacements(policy, stats):
    raw, noise = raw_observation(make_episode(50), 2, "go"), torch.randn(HORIZON, 5)
    plain = policy.act(raw, noise=0.5 * noise, stats=stats)
    found = policy.act(raw, noise=noise, stats=stats, acting=FAST)
    np.testing.assert_allclose(found, plain * [1.5, 1.0, 1.5], rtol=1e-5)
    assert not np.allclose(plain, policy.act(raw, noise=noise, stats=stats))


def test_a_policys_own_acting_is_used_unless_told_otherwise(policy, stats):
    raw, noise = raw_observation(make_episode(50), 2, "go"), torch.randn(HORIZON, 5)
    own = replace(policy, acting=FAST)
    np.testing.assert_array_equal(
        own.act(raw, noise=noise, stats=stats), policy.act(raw, noise=noise, stats=stats, acting=FAST)
    )
    np.testing.assert_array_equal(
        own.act(raw, noise=noise, stats=stats, acting=Acting()), policy.act(raw, noise=noise, stats=stats)
    )


def test_what_is_not_told_stays_and_zero_is_told():
    assert FAST.but() == FAST and FAST.but(speed=2.0) == Acting(2.0, 0.5)
    assert FAST.but(temperature=0.0) == Acting(1.5, 0.0)


def test_without_temperature_every_sample_is_the_same(policy, stats):
    raw, still = raw_observation(make_episode(50), 2, "go"), Acting(temperature=0.0)
    one, other = (policy.act(raw, stats=stats, acting=still) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(*(policy.act(raw, stats=stats, acting=Acting()) for _ in range(2)))


@pytest.mark.filterwarnings("ignore:the policy acts with a speed, which does nothing")
def test_where_it_is_not_known_what_moves_speed_changes_nothing(policy):
    raw, noise, unknown = raw_observation(make_episode(50), 2, "go"), torch.randn(HORIZON, 5), make_play().stats()
    assert unknown.displacements is None
    fast = policy.act(raw, noise=noise, stats=unknown, acting=Acting(speed=3.0))
    np.testing.assert_array_equal(fast, policy.act(raw, noise=noise, stats=unknown))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_statistics_say_what_moves_and_are_told_as_json(stats, as_tensor):
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    values = torch.from_numpy(values) if as_tensor else values
    again = NormStats.from_dict(stats.to_dict())
    assert again.displacements == MOVED and "displacements" not in make_play().stats().to_dict()
    found, plain = again.unnormalize_action(values, 2.0), stats.unnormalize_action(values)
    assert type(found) is type(values) and found.dtype == values.dtype
    np.testing.assert_allclose(np.asarray(found), np.asarray(plain) * [2, 1, 2], rtol=1e-6)
    with pytest.raises(ValueError, match="2 numbers are said to be displacements or not, actions have 3"):
        replace(stats, displacements=(True, False))


def test_a_robots_description_says_which_numbers_are_displacements():
    axes = (
        Axis("x", 0.0, 1.0, speed=0.1, step=0.01),
        Axis("turn", 0.0, 1.0, speed=0.1),
        Axis("gripper", 0.0, 1.0, speed=float("inf"), step=1.0, toggles=True),
    )
    told = Description("r", 20.0, axes, ("a", "b")).to_dict()
    assert replace(make_play(), embodiment=told).displacements == (True, False, False)
    for kind, expected in (("ee_delta", (True, True, False)), ("ee_absolute", (False, False, False))):
        body = BodySpec(action_space=ActionSpace(kind))
        assert replace(make_play(), embodiment=body.to_dict()).displacements == expected
    for unknown in ({"name": "r"}, {"axes": ["x", "y", "gripper"]}, {"axes": "xyz"}, {"axes": [{"name": "x"}] * 3}):
        assert replace(make_play(), embodiment=unknown).displacements is None


def test_contexts_know_what_moves_whosever_statistics_they_have(policy):
    body = BodySpec().to_dict()
    play, config = replace(make_play(), embodiment=body), AlignConfig(steps=1)
    for stats in (None, make_play().stats()):
        context = align(policy, play, config=config, progress=False, stats=stats).fitted
        assert NormStats.from_dict(context.info.norm_stats).displacements == (True, True, False)


def test_bodies_of_a_batch_move_by_their_own_displacements(policy, stats):
    prior, noise = policy.model.prior().detach(), torch.randn(2, HORIZON, 5)
    raw = raw_observation(make_play().episodes[0], None)
    raw = {key: value[:2] for key, value in raw.items() if key != "task"} | {"task": ["go", "go"]}
    masks = MOVED, (False, False, True)
    contexts = [prior.with_info(norm_stats=replace(stats, displacements=mask).to_dict()) for mask in masks]
    slow, fast = (policy.act(raw, contexts, noise=noise, acting=Acting(speed)) for speed in (1.0, 2.0))
    for before, after, mask in zip(slow, fast, masks, strict=True):
        np.testing.assert_allclose(after, before * np.where(mask, 2.0, 1.0), rtol=1e-5)


def test_speed_that_does_nothing_is_told(policy):
    quick = policy.acting_at(speed=2.0)
    unknown = make_play()
    with pytest.warns(UserWarning, match="nobody says which numbers of an action are displacements"):
        context = align(quick, unknown, config=AlignConfig(steps=1), progress=False).fitted
    with pytest.warns(UserWarning, match="nobody says which numbers"):
        quick.act(raw_observation(unknown.episodes[0], 0), context)


def test_other_acting_has_no_calibration(policy):
    policy = replace(policy, calibration=make_calibration(policy.fingerprint()))
    assert policy.acting_at() is policy and policy.acting_at(speed=1.0) is policy
    other = policy.acting_at(temperature=0.5)
    assert other.acting == Acting(1.0, 0.5) and other.calibration is None and policy.calibration is not None


def test_a_server_acts_as_the_policy_does(tmp_path: Path):
    policy = replace(small_policy(cameras=("scene", "wrist")), acting=FAST)
    table = ContextTable(policy, write_contexts(policy, tmp_path))
    known = table.get("slow")
    moving = replace(known, stats=replace(known.stats, displacements=MOVED))
    raw, noise = {**observation(3), "task": "go"}, torch.randn(HORIZON, 5)
    query = Query(policy.observation(raw, moving.stats), moving, noise, raw["observation.state"])
    (answer,) = infer(policy, [query], 4)
    expected = policy.act(raw, known.context, noise=noise, num_steps=4, stats=moving.stats)
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


# ---- the checkpoint ------------------------------------------------------------------------------------------------


def test_a_checkpoint_carries_it(policy, tmp_path: Path):
    save_checkpoint(policy, tmp_path)
    assert "acting" not in read_json(tmp_path / "settings.json") and load(tmp_path).acting == Acting()
    set_acting(tmp_path, FAST)
    assert load(tmp_path).acting == FAST
    save_checkpoint(load(tmp_path), tmp_path / "again")
    assert load(tmp_path / "again").acting == FAST
    set_acting(tmp_path, Acting())
    assert load(tmp_path).acting == Acting()


def test_a_calibration_of_other_acting_goes(policy, tmp_path: Path):
    save_checkpoint(policy, tmp_path)
    set_calibration(tmp_path, make_calibration(policy.fingerprint()))
    set_acting(tmp_path, Acting())
    assert load(tmp_path).calibration is not None, "nothing has changed"
    set_acting(tmp_path, FAST)
    assert load(tmp_path).calibration is None and not (tmp_path / "calibration.json").exists()


@pytest.mark.parametrize(
    "values",
    [{"speed": 0.0}, {"speed": float("nan")}, {"temperature": -0.1}, {"temperature": float("inf")}],
)
def test_impossible_acting_is_refused(values):
    with pytest.raises(ValueError, match="of acting must be"):
        Acting(**values)


@pytest.mark.parametrize("told", [{"speed": 1.0}, {"speed": -1.0, "temperature": 1.0}, [1.0, 1.0]])
def test_a_damaged_checkpoint_says_so(policy, tmp_path: Path, told):
    save_checkpoint(policy, tmp_path)
    data = read_json(tmp_path / "settings.json")
    del data["sums"]
    write_json(tmp_path / "settings.json", {**data, "acting": told})
    with pytest.raises(ValueError, match=r"damaged or of another version: .*acting"):
        load(tmp_path)
