"""A policy with a robot: names and conventions of the robot outside, the model's inside."""

import dataclasses

import numpy as np
import pytest
import torch

import selfalign as sa
from align.factory import HORIZON, make_play, raw_observation, small_policy
from selfalign.align.offline import AlignConfig
from selfalign.checkpoint import save_checkpoint
from selfalign.data.normalize import NormStats
from selfalign.embodiments import DeltaActions, Embodiment, Part, make_bool_mask
from selfalign.policy import Policy

ROBOT = Embodiment(
    "gantry",
    cameras={"scene": ("rgb", "observation.images.overhead")},
    state=(Part(("x", "y"), ("pose/xy",)), Part(("grip",), ("grip",))),
    action=(Part(("x", "y", "grip"), ("command",)),),
    steps=(DeltaActions(make_bool_mask(2, -1)),),
    unused=("observation.images.back",),
)


@pytest.fixture
def policy() -> Policy:
    return dataclasses.replace(small_policy(), robot=ROBOT)


def gantry_play(**changes) -> sa.Play:
    """Actions are targets: the state and a displacement."""
    play = make_play(**changes)
    episodes = [
        dataclasses.replace(
            e,
            images={"overhead": e.images["scene"], "back": e.images["scene"] * 0},
            action=np.concatenate([e.state[:, :2] + e.action[:, :2], e.action[:, 2:]], axis=1),
        )
        for e in play.episodes
    ]
    return sa.Play.from_episodes(episodes, {"name": "gantry"})


def test_acting_is_the_plain_policy_between_the_robots_names_and_conventions(policy):
    play, noise = gantry_play(), torch.randn(HORIZON, 5)
    stats, episode = policy.play_stats(play), play.episodes[0]
    raw = {
        "rgb": episode.images["overhead"][3],
        "pose": {"xy": episode.state[3, :2]},
        "grip": episode.state[3, 2],
        "prompt": "go",
    }
    plain = dataclasses.replace(policy, robot=None)
    seen = {"observation.images.scene": raw["rgb"], "observation.state": episode.state[3], "task": "go"}
    expected = plain.act(seen, noise=noise, stats=stats)
    expected[:, :2] += episode.state[3, :2]
    actions = policy.act(raw, noise=noise, stats=stats)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected, rtol=1e-6, atol=1e-6)
    assert {key: x.shape for key, x in ROBOT.unpack(actions).items()} == {"command": (HORIZON, 3)}


def test_speed_takes_targets_further_from_the_state(policy):
    play, noise = gantry_play(), torch.randn(HORIZON, 5)
    context = sa.align(policy, play, config=AlignConfig(steps=1)).context
    episode = policy.repack_play(play).episodes[0]
    raw, state = raw_observation(episode, 3), episode.state[3]
    slow, fast = (policy.act(raw, context, noise=noise, acting=sa.Acting(speed)) for speed in (1.0, 2.0))
    np.testing.assert_allclose(fast[:, :2] - state[:2], 2 * (slow[:, :2] - state[:2]), atol=1e-5)
    np.testing.assert_array_equal(fast[:, 2], slow[:, 2], err_msg="the gripper is no displacement")


def test_a_batch_acts_as_its_observations_one_by_one(policy):
    play, noise = gantry_play(), torch.randn(2, HORIZON, 5)
    stats, episode = policy.play_stats(play), policy.repack_play(play).episodes[0]
    raw = raw_observation(episode, None)
    batch = {key: value[:2] for key, value in raw.items() if key != "task"} | {"task": ["go", "stop"]}
    together = policy.act(batch, noise=noise, stats=stats)
    for i, task in enumerate(["go", "stop"]):
        alone = policy.act(raw_observation(episode, i, task), noise=noise[i], stats=stats)
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-5)


def test_play_passes_the_robots_steps_chunk_by_chunk(policy):
    play = gantry_play(count=3)
    stats, seen = policy.play_stats(play), policy.repack_play(play)
    assert seen.cameras == ("scene",) and policy.repack_play(seen).cameras == ("scene",)
    transitions = policy.transitions(seen, stats)
    row = 0
    for episode in play.episodes:
        for t in range(len(episode) - HORIZON):
            chunk = episode.action[t : t + HORIZON].copy()
            chunk[:, :2] -= episode.state[t, :2]
            found = stats.unnormalize_action(transitions.actions.values[row, :, :3].numpy())
            np.testing.assert_allclose(found, chunk, atol=1e-5)
            row += 1
    assert row == len(transitions.actions.values)


def test_alignment_of_a_robot_is_that_of_play_in_the_models_conventions(policy):
    """The same robot, with its displacements recorded instead of its targets, needs no robot: W must be nearly equal.

    With a horizon of one action, a chunk's displacements are a frame's.
    """
    config = dataclasses.replace(policy.model.config, action_horizon=1)
    model = type(policy.model)(config).eval()
    policy = dataclasses.replace(policy, model=model)
    settings = AlignConfig(steps=3, batch_size=8)
    found = sa.align(policy, gantry_play(), config=settings, progress=False)
    plain = sa.align(dataclasses.replace(policy, robot=None), make_play(), config=settings, progress=False)
    assert NormStats.from_dict(found.fitted.info.norm_stats).action_dim == 3
    for ours, theirs in zip(found.fitted.tensors, plain.fitted.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_context_is_refused_where_numbers_come_otherwise(policy, tmp_path):
    plain = dataclasses.replace(policy, robot=None)
    once = AlignConfig(steps=1)
    context = sa.align(policy, gantry_play(), config=once, progress=False).fitted
    path = context.save(tmp_path / "gantry.safetensors")
    assert policy.load_context(path).info.robot == "gantry"
    with pytest.raises(ValueError, match=r"'gantry' went through the steps of the robot .* taken as they came"):
        plain.load_context(path)
    with pytest.raises(ValueError, match=r"taken as they came when .* of the robot 'gantry': load the policy"):
        policy.check_context(sa.align(plain, make_play(), config=once, progress=False).fitted)
    other = dataclasses.replace(policy, robot=dataclasses.replace(ROBOT, name="crane"))
    with pytest.raises(ValueError, match=r"robot 'gantry' when .* robot 'crane'"):
        other.check_context(context)
    names = dataclasses.replace(policy, robot=dataclasses.replace(ROBOT, steps=()))
    names.check_context(sa.align(plain, make_play(), config=once, progress=False).fitted)  # only calls things otherwise
    policy.check_context(context.with_info(robot=None))  # from before files said it


def test_load_takes_a_robot_by_name_or_file(policy, tmp_path):
    save_checkpoint(policy, tmp_path / "model")
    assert sa.load(tmp_path / "model").robot is None
    assert sa.load(tmp_path / "model", robot=ROBOT).robot is ROBOT
    found = sa.load(tmp_path / "model", robot="sim_panda").robot
    assert found is not None and found.name == "sim_panda"
    with pytest.raises(ValueError, match="no robot 'hal'"):
        sa.load(tmp_path / "model", robot="hal")
