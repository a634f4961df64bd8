"""Changes of whole episodes: undone they are what was recorded, and the other body still does the same."""

import json

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.factory import assert_same, make_episode
from selfalign.data.changes import (
    ActionKind,
    Changes,
    EpisodeChange,
    IdleJoints,
    InFrames,
    InJoints,
    Inverse,
    RemadeBody,
    WithoutDims,
    body_from_dict,
)
from selfalign.data.episodes import Episode
from selfalign.data.homography import CameraTurn
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.rate import ControlRate
from selfalign.sim.bodies import ActionSpace
from selfalign.sim.control import JOINT_STEP, TIP_STEP, Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.experts import make_expert
from selfalign.sim.tasks import sample_scene, sample_task

pytest.importorskip("mink", reason="kinematics needs mink: pip install 'selfalign[kinematics]'")
from selfalign.data.kinematics import ArmKinematics

seeds = st.integers(0, 2**32 - 1)

LENGTHS = 0.3, 0.25, 0.1
PLANAR = f"""
<mujoco><worldbody><body><joint name="a" axis="0 0 1"/><geom size=".01"/>
  <body pos="{LENGTHS[0]} 0 0"><joint name="b" axis="0 0 1"/><geom size=".01"/>
    <body pos="{LENGTHS[1]} 0 0"><joint name="c" axis="0 0 1"/><geom size=".01"/>
      <site name="tool" pos="{LENGTHS[2]} 0 0"/></body></body></body>
  <body pos="0 0 1"><freejoint name="cube"/><geom size=".02"/></body></worldbody></mujoco>
"""


@pytest.fixture(scope="module")
def planar() -> ArmKinematics:
    return ArmKinematics(mujoco.MjModel.from_xml_string(PLANAR), "tool", ("a", "b", "c"))


def planar_tool(joints) -> tuple[np.ndarray, float]:
    """The textbook: a chain of three links in a plane."""
    angles = np.cumsum(joints)
    return np.array([np.dot(LENGTHS, np.cos(angles)), np.dot(LENGTHS, np.sin(angles)), 0.0]), angles[-1]


@given(st.tuples(st.floats(-2, 2), st.floats(0.3, 2), st.floats(-1, 1)))
@settings(max_examples=15, deadline=None)
def test_an_arms_kinematics_are_the_textbooks(planar, joints):
    position, rotation = planar.place(np.array(joints))
    expected, turn = planar_tool(joints)
    np.testing.assert_allclose(position, expected, atol=1e-12)
    np.testing.assert_allclose(rotation[:2, 0], [np.cos(turn), np.sin(turn)], atol=1e-12)
    near = np.array(joints) + [0.1, -0.1, 0.1]
    np.testing.assert_allclose(planar.solve(position, rotation, near), joints, atol=1e-6)


def test_what_is_out_of_reach_is_said(planar):
    with pytest.raises(ValueError, match=r"no joint angles near .* bring tool to \(2.000, 0.000, 0.000\) m"):
        planar.solve(np.array([2.0, 0, 0]), np.eye(3), np.array([0.1, 0.2, 0.1]))
    with pytest.raises(ValueError, match="no joint d"):
        ArmKinematics(mujoco.MjModel.from_xml_string(PLANAR), "tool", ("a", "d"))
    with pytest.raises(ValueError, match="no site hand"):
        ArmKinematics(mujoco.MjModel.from_xml_string(PLANAR), "hand", ("a",))
    with pytest.raises(ValueError, match="must turn or slide"):
        ArmKinematics(mujoco.MjModel.from_xml_string(PLANAR), "tool", ("cube",))


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_frames_targets_and_idle_joints_are_undone(seed):
    rng = np.random.default_rng(seed)
    episode = make_episode(seed % 1000, length=int(rng.integers(2, 30)), size=(4, 4))
    joint = bool(rng.integers(2))
    frames = [JointFrame.sample(rng, 3) if joint else LinearFrame.sample(rng) for _ in range(2)]
    change = Changes(
        (
            InFrames(EmbodimentPerturbation(frames[0], frames[1], absolute=bool(rng.integers(2)))),
            IdleJoints(int(rng.integers(1, 4)), seed=int(rng.integers(100))),
        )
    )
    assert change.exact and isinstance(change, EpisodeChange)
    there = change.apply(episode)
    assert there.action.shape[1] > episode.action.shape[1]
    back = change.invert(there)
    np.testing.assert_allclose(back.action, episode.action, atol=5e-4)  # float32 sums of displacements
    np.testing.assert_allclose(back.state, episode.state, atol=1e-5)
    assert_same(change.apply(episode), there)


def test_idle_joints_stand_before_the_gripper_and_follow_their_commands():
    episode = make_episode(0, length=20)
    there = IdleJoints(2, seed=3, step=0.1).apply(episode)
    np.testing.assert_array_equal(there.action[:, [0, 1, 2, -1]], episode.action)
    np.testing.assert_array_equal(there.state[:, [0, 1, 2, -1]], episode.state)
    np.testing.assert_allclose(np.diff(there.state[:, 3:5], axis=0), 0.1 * there.action[:-1, 3:5], atol=1e-6)
    assert np.abs(there.action[:, 3:5]).max() <= 1 and np.ptp(there.action[:, 3:5], axis=0).min() > 0.1
    assert_same(IdleJoints(2, seed=3).invert(IdleJoints(2, seed=3).apply(episode)), episode)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_dimensions_that_stand_still_go_and_come_back(seed):
    rng = np.random.default_rng(seed)
    episode = make_episode(seed % 1000, size=(4, 4))
    dims = {
        name: sorted(rng.choice(4, int(rng.integers(0, 4)), replace=False).tolist()) for name in ("state", "action")
    }
    for name, chosen in dims.items():
        getattr(episode, name)[:, chosen] = rng.normal(size=len(chosen))
    change = WithoutDims.of(episode, **dims)
    there = change.apply(episode)
    assert there.state.shape[1] == 4 - len(dims["state"]) and there.action.shape[1] == 4 - len(dims["action"])
    assert_same(change.invert(there), episode)


def test_dimensions_that_move_cannot_go():
    episode = make_episode(0)
    with pytest.raises(ValueError, match=r"dimension 2 of the action moves by .* would not have done that"):
        WithoutDims.of(episode, action=(2,)).apply(episode)
    with pytest.raises(ValueError, match="cannot go"):
        WithoutDims(state=(7,), state_values=(0.0,)).apply(episode)
    with pytest.raises(ValueError, match="needs one value"):
        WithoutDims(state=(1,))
    with pytest.raises(ValueError, match="at least one joint"):
        IdleJoints(0)


def remade(seed: int, recorded: ActionKind) -> RemadeBody:
    rng = np.random.default_rng(seed)
    joint = bool(rng.integers(2))
    frames = [JointFrame.sample(rng, 3) if joint else LinearFrame.sample(rng) for _ in range(2)]
    settings = {"swapped": bool(rng.integers(2)), "step": 0.1, "every": int(rng.integers(1, 4)), "idle_joints": 2}
    return RemadeBody(EmbodimentPerturbation(*frames), recorded, seed=seed % 100, **settings)


@given(seeds, st.sampled_from(["displacements", "targets"]))
@settings(max_examples=25, deadline=None)
def test_a_remade_body_is_its_changes_and_comes_back_from_json(seed, recorded):
    body = remade(seed, recorded)
    again = body_from_dict(json.loads(json.dumps(body.to_dict())))
    assert again == body and hash(again) == hash(body)
    assert body_from_dict(body.frames.to_dict()) == body.frames
    episode = make_episode(seed % 1000, length=12, size=(2, 2))
    slow = ControlRate(body.every, recorded == "targets").apply(episode)
    there = body.changes.apply(episode)
    assert there.action.shape == (12 // body.every, 6) and there.fps == slow.fps
    back = Changes(body.changes.parts[body.every > 1 :]).invert(there)
    np.testing.assert_allclose(back.action, slow.action, atol=5e-4)
    np.testing.assert_allclose(back.state, slow.state, atol=1e-5)


def test_displacements_become_targets_and_targets_displacements():
    episode = make_episode(0, length=9)
    targets = RemadeBody(swapped=True, step=0.5).changes.apply(episode)
    expected = episode.state[0, :3] + 0.5 * episode.action[:, :3].cumsum(0)
    np.testing.assert_allclose(targets.action[:, :3], expected, atol=1e-5)
    displaced = RemadeBody(recorded="targets", swapped=True).changes.apply(episode)
    np.testing.assert_allclose(displaced.action[1:, :3], np.diff(episode.action[:, :3], axis=0), atol=1e-6)
    np.testing.assert_allclose(displaced.action[0, :3], episode.action[0, :3] - episode.state[0, :3], atol=1e-6)
    np.testing.assert_array_equal(displaced.action[:, 3], episode.action[:, 3])


def test_the_inverse_is_the_change_the_other_way_round():
    episode, change = make_episode(0, size=(4, 4)), IdleJoints(2, seed=3)
    assert_same(Inverse(change).apply(change.apply(episode)), episode)
    assert_same(Inverse(change).invert(episode), change.apply(episode))
    assert Inverse(change).exact and not Inverse(ControlRate(2)).exact


# ---- in the simulator ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sim():
    return Simulation("panda")


@pytest.fixture(scope="module")
def arm(sim) -> ArmKinematics:
    joints = [sim.model.joint(int(sim.model.actuator_trnid[i, 0])).name for i in range(7)]
    return ArmKinematics(sim.model, "tip", joints)


def begin(sim: Simulation, seed: int):
    rng = np.random.default_rng([seed, 7])
    scene = sample_scene(rng, sample_task(rng, ("reach",)))
    sim.reset(np.array(scene.tip), scene.cubes, rng)
    return scene.task, Controller(sim)


@pytest.fixture(scope="module")
def demonstration(sim) -> Episode:
    """The expert's way to its goal, in canonical numbers."""
    task, controller = begin(sim, 0)
    expert, start, states, actions = make_expert(task, sim), sim.cube_position(task.colour), [], []
    for _ in range(task.steps):
        states.append(np.append(sim.tip, sim.gripper_opening))
        actions.append(expert(sim))
        controller.move_tip(actions[-1][:3], actions[-1][3])
    assert task.success(sim, start)
    images = {"scene": np.zeros((len(actions), 4, 4, 3), np.uint8)}
    return Episode(images, np.float32(states), np.float32(actions), task=task.instruction)


def reaches(sim: Simulation, space: ActionSpace, actions: np.ndarray) -> bool:
    """Whether a body that takes such actions comes to the goal with them."""
    task, controller = begin(sim, 0)
    start = sim.cube_position(task.colour)
    for action in actions:
        space.execute(controller, action)
    return task.success(sim, start)


FRAME = LinearFrame.sample(np.random.default_rng(4))
SHIFTED = LinearFrame(FRAME.matrix, (0.1, -0.2, 0.3))


def frames(frame=FRAME, absolute=False) -> InFrames:
    return InFrames(EmbodimentPerturbation(frame, LinearFrame(), absolute, step=TIP_STEP))


@pytest.mark.parametrize(
    ("change", "space"),
    [
        (frames(), ActionSpace("ee_delta", FRAME)),
        (frames(LinearFrame(), absolute=True), ActionSpace("ee_absolute")),
        (frames(SHIFTED, absolute=True), ActionSpace("ee_absolute", SHIFTED)),
    ],
    ids=["frame", "targets", "targets in a frame"],
)
def test_a_perturbed_expert_reaches_its_goal(sim, demonstration, change, space):
    there = change.apply(demonstration)
    assert reaches(sim, space, there.action)
    assert not reaches(sim, ActionSpace(), there.action), "the numbers mean something else now"
    np.testing.assert_allclose(change.invert(there).action, demonstration.action, atol=2e-4)


def test_an_expert_that_is_moved_by_its_joints_reaches_its_goal(sim, arm, demonstration):
    change = InJoints(arm, tuple(sim.home), step=TIP_STEP, joint_step=JOINT_STEP)
    there = change.apply(demonstration)
    assert there.action.shape[1] == there.state.shape[1] == 8 and not change.exact
    np.testing.assert_array_equal(there.action[:, -1], demonstration.action[:, -1])
    np.testing.assert_allclose(arm.positions(there.state[:, :7]), demonstration.state[:, :3], atol=1e-5)
    assert reaches(sim, ActionSpace("joint_delta"), there.action)
    back = change.invert(there)
    np.testing.assert_allclose(back.state, demonstration.state, atol=1e-5)
    np.testing.assert_allclose(back.action, demonstration.action, atol=2e-3)  # 0.06 mm of 30


def test_changes_together_reach_the_goal(sim, arm, demonstration):
    order = JointFrame.sample(np.random.default_rng(1), 7)
    body = InFrames(EmbodimentPerturbation(order, order))
    change = Changes((InJoints(arm, tuple(sim.home)), body, IdleJoints(1), CameraTurn.build("scene", pan=3)))
    there = change.apply(demonstration)
    assert not change.exact and there.action.shape[1] == 9
    assert reaches(sim, ActionSpace("joint_delta", order), IdleJoints(1).invert(there).action)
    np.testing.assert_allclose(change.invert(there).action, demonstration.action, atol=2e-3)
