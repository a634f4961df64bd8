"""The arm goes where it is told, the gripper holds what it grasps, and the scene is as it was asked for."""

from collections.abc import Iterator

import numpy as np
import pytest

from selfalign.sim.engine import CONTROL_HZ, WORKSPACE_HIGH, WORKSPACE_LOW, Simulation
from selfalign.sim.kinematics import TOOL_VERTICAL
from selfalign.sim.robots import ROBOTS

CENTRE = np.array([0.0, 0.0, 0.15])
CORNERS = np.array(np.meshgrid(*zip(WORKSPACE_LOW, WORKSPACE_HIGH, strict=True))).reshape(3, -1).T


@pytest.fixture(scope="module", params=ROBOTS)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    with Simulation(request.param) as simulation:
        yield simulation


@pytest.fixture(scope="module")
def panda() -> Iterator[Simulation]:
    with Simulation("panda") as simulation:
        yield simulation


def move(sim: Simulation, goal: np.ndarray, gripper: float, steps: int, speed: float = 0.03) -> None:
    """A straight line at `speed` metres a step, then waiting."""
    target = sim.kinematics.tip(sim.joint_target)
    for _ in range(steps):
        way = goal - target
        target = target + way * min(1.0, speed / max(np.abs(way).max(), 1e-9))
        sim.command_tip(target, gripper)


def test_the_tip_reaches_every_corner(sim: Simulation) -> None:
    for corner in CORNERS:
        sim.reset(CENTRE)
        move(sim, corner, -1.0, 8)
        for _ in range(20):
            sim.command_tip(corner, -1.0)
        assert np.linalg.norm(sim.tip - corner) < 0.005, corner
        tool = sim.data.site("tip").xmat.reshape(3, 3)
        assert np.degrees(np.arccos(np.clip(np.sum(tool * TOOL_VERTICAL, axis=0), -1, 1))).max() < 1.5
        lower, upper = sim.joint_limits
        assert np.all(sim.joints > lower) and np.all(sim.joints < upper)


def test_it_starts_elbow_up_with_the_gripper_open(sim: Simulation) -> None:
    sim.reset(CENTRE)
    np.testing.assert_allclose(sim.tip, CENTRE, atol=0.002)
    arm = [body for body in range(sim.model.nbody) if sim.model.body(body).name.startswith("robot0_")]
    highest = sim.data.xpos[arm, 2].max()
    assert highest > sim.tip[2] + 0.25
    assert sim.gripper_opening == 1.0
    np.testing.assert_allclose(sim.joint_target, sim.joints)


def test_the_gripper_closes_and_opens(sim: Simulation) -> None:
    sim.reset(CENTRE)
    openings = []
    for gripper in (1.0,) * 25 + (-1.0,) * 25:
        sim.command_tip(CENTRE, gripper)
        openings.append(sim.gripper_opening)
    assert openings[0] > 0.5 and min(openings[20:25]) < 0.02 and openings[-1] > 0.98
    assert np.linalg.norm(sim.tip - CENTRE) < 0.003


def test_it_lifts_a_cube_and_lets_go(sim: Simulation) -> None:
    if not sim.robot.can_lift:
        pytest.skip("offered for reaching and pushing only")
    for x, y, yaw in ((0.08, 0.10, 0.2), (-0.10, -0.06, -0.2)):
        sim.reset(CENTRE, {"red": (x, y, yaw), "blue": (-x, y, 0.0)})
        move(sim, np.array([x, y, 0.08]), -1.0, 10)
        move(sim, np.array([x, y, 0.02]), -1.0, 5)
        move(sim, np.array([x, y, 0.02]), 1.0, 12)
        assert 0.15 < sim.gripper_opening < 0.85
        move(sim, np.array([x, y, 0.20]), 1.0, 12)
        move(sim, np.array([-x, -y, 0.20]), 1.0, 20)
        assert np.linalg.norm(sim.cube_position("red") - sim.tip) < 0.02
        np.testing.assert_allclose(sim.cube_position("blue"), [-x, y, 0.02], atol=0.002)
        move(sim, np.array([-x, -y, 0.20]), -1.0, 16)
        assert sim.cube_position("red")[2] < 0.03


def test_joint_commands_are_followed(sim: Simulation) -> None:
    sim.reset(CENTRE)
    target = sim.joints + np.linspace(-0.1, 0.1, sim.robot.num_joints)
    for _ in range(20):
        sim.command_joints(target, -1.0)
    np.testing.assert_allclose(sim.joints, target, atol=0.005)
    sim.command_joints(np.full(sim.robot.num_joints, 100.0), -1.0)
    np.testing.assert_array_equal(sim.joint_target, sim.joint_limits[1])


def test_forward_kinematics_agree_with_the_simulation_and_disturb_nothing(sim: Simulation) -> None:
    sim.reset(CENTRE)
    before = sim.data.qpos.copy()
    np.testing.assert_allclose(sim.kinematics.tip(sim.joints), sim.tip, atol=1e-9)
    joints, error = sim.kinematics.solve(np.array([0.1, 0.05, 0.1]), sim.joints, iterations=60)
    assert error < 0.001
    np.testing.assert_allclose(sim.kinematics.tip(joints), [0.1, 0.05, 0.1], atol=0.001)
    np.testing.assert_array_equal(sim.data.qpos, before)


# --- what does not depend on the arm


def test_a_step_takes_a_twentieth_of_a_second(panda: Simulation) -> None:
    panda.reset(CENTRE)
    panda.command_tip(CENTRE, -1.0)
    assert panda.data.time == pytest.approx(1.0 / CONTROL_HZ) == pytest.approx(0.05)


def test_the_same_commands_give_the_same_states(panda: Simulation) -> None:
    states = []
    for _ in range(2):
        panda.reset(CENTRE, {"red": (0.05, 0.05, 0.1)}, np.random.default_rng(3))
        move(panda, np.array([0.05, 0.05, 0.03]), -1.0, 10)
        states.append(panda.data.qpos.copy())
    np.testing.assert_array_equal(states[0], states[1])


def test_a_generator_varies_the_posture_of_a_redundant_arm_and_not_its_tip(panda: Simulation) -> None:
    postures = []
    for seed in (0, 1):
        panda.reset(CENTRE, {}, np.random.default_rng(seed))
        np.testing.assert_allclose(panda.tip, CENTRE, atol=0.002)
        postures.append(panda.joints)
    assert np.abs(postures[0] - postures[1]).max() > 0.01


def test_cubes_rest_where_they_are_put_and_others_stay_away(panda: Simulation) -> None:
    panda.reset(np.array([0.0, 0.0, 0.25]), {"red": (0.1, 0.1, 0.5), "yellow": (-0.1, 0.1, 0.0)})
    assert panda.cubes == ("red", "yellow")
    for _ in range(40):
        panda.command_tip(np.array([0.0, 0.0, 0.25]), -1.0)
    np.testing.assert_allclose(panda.cube_position("red"), [0.1, 0.1, 0.02], atol=0.001)
    with pytest.raises(ValueError, match="no green cube in the scene; there are: red, yellow"):
        panda.cube_position("green")
    assert panda.data.body("cube_green").xpos[2] < -20.0
    panda.reset(CENTRE, {"green": (0.0, 0.1, 0.0)})
    assert panda.cubes == ("green",)


def test_pushing_moves_a_cube_and_not_the_table(panda: Simulation) -> None:
    panda.reset(np.array([0.0, -0.08, 0.15]), {"red": (0.0, 0.0, 0.0)})
    move(panda, np.array([0.0, -0.08, 0.02]), 1.0, 10)
    move(panda, np.array([0.0, 0.05, 0.02]), 1.0, 20, speed=0.01)
    assert panda.cube_position("red")[1] > 0.06
    # The fingers' sloping backs may tilt it; it lies flat again once they are gone.
    move(panda, np.array([0.0, 0.0, 0.02]), 1.0, 10, speed=0.01)
    assert panda.cube_position("red")[2] == pytest.approx(0.02, abs=0.001)


def test_pressing_on_the_table_stays_bounded(panda: Simulation) -> None:
    panda.reset(CENTRE)
    move(panda, np.array([0.0, 0.0, -0.05]), -1.0, 30)
    assert panda.tip[2] > -0.005
    assert np.abs(panda.data.qvel).max() < 1.0


def test_landmarks_are_the_tip_the_cubes_and_the_ends_of_the_hand(panda: Simulation) -> None:
    panda.reset(CENTRE, {"green": (0.05, 0.0, 0.0)})
    landmarks = panda.landmarks
    np.testing.assert_array_equal(np.isnan(landmarks).any(axis=1), [False, True, False, True, True, False, False])
    np.testing.assert_array_equal(landmarks[0], panda.tip)
    np.testing.assert_allclose(landmarks[2], [0.05, 0.0, 0.02], atol=1e-3)
    # The hand points down with its long side across, and its mesh ends within 5 mm of the landmarks.
    mesh = panda.model.geom("gripper0_right_gripper_visual_0").id
    centre, axes = panda.data.geom_xpos[mesh], panda.data.geom_xmat[mesh].reshape(3, 3)
    reach = np.abs(axes @ np.diag(panda.model.geom_aabb[mesh, 3:]))[1].max()
    across = np.sort(landmarks[5:, 1] - panda.tip[1])
    np.testing.assert_allclose(across, [-0.095, 0.095], atol=2e-3)
    assert 0 <= reach - 0.095 < 0.01
    np.testing.assert_allclose(landmarks[5:, 2], centre[2], atol=5e-3)


def test_wrong_requests_are_refused(panda: Simulation) -> None:
    with pytest.raises(ValueError, match=r"panda_panda cannot reach tip position \[1.5, 0.0, 0.1\]"):
        panda.reset(np.array([1.5, 0.0, 0.1]))
    with pytest.raises(ValueError, match=r"unknown cube colours \['pink'\]; known: red, green, blue, yellow"):
        panda.reset(CENTRE, {"pink": (0.0, 0.0, 0.0)})
    panda.reset(CENTRE)
    with pytest.raises(ValueError, match="panda_panda has 7 joints"):
        panda.command_joints(np.zeros(6), 0.0)
    with pytest.raises(ValueError, match="not finite"):
        panda.command_joints(np.full(7, np.nan), 0.0)
    with pytest.raises(ValueError, match="not finite"):
        panda.command_tip(CENTRE, float("nan"))


def test_two_simulations_share_a_model_and_no_state() -> None:
    with Simulation("panda") as first, Simulation("panda") as second:
        first.reset(np.array([0.1, 0.1, 0.2]), {"red": (0.0, 0.0, 0.0)})
        np.testing.assert_allclose(second.tip, CENTRE, atol=0.002)
        assert second.cubes == ()
        cube = first.model.body("cube_red").id
        assert [sim.model.body_gravcomp[cube] for sim in (first, second)] == [0.0, 1.0]
