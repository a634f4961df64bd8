"""Bodies: drawn from seeds, written as JSON, disjoint between regions, and their spaces mean the same motion."""

import dataclasses
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from selfalign.data.perturb import JointFrame, LinearFrame
from selfalign.sim import regions
from selfalign.sim.bodies import (
    ACTION_KINDS,
    CHANGED,
    ActionSpace,
    BodySpec,
    StateSpace,
    before_change,
    sample_bodies,
    sample_camera,
    sample_rigs,
    sample_spaces,
)
from selfalign.sim.control import Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.regions import SCENARIOS
from selfalign.sim.robots import RobotSpec
from selfalign.sim.virtual import source_perturbation


def heldout(scenario: str, n: int = 20, seed: int = 0) -> list[BodySpec]:
    return sample_bodies(n, seed, "heldout", scenario)  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_seed_gives_the_same_bodies_and_others_give_others(scenario):
    assert heldout(scenario, 4) == heldout(scenario, 6)[:4]
    names = {body.name for seed in range(3) for body in heldout(scenario, 4, seed)}
    assert len(names) == 12


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_bodies_survive_json(scenario):
    for body in heldout(scenario, 5):
        again = BodySpec.from_dict(json.loads(json.dumps({"name": body.name, **body.to_dict()})))
        assert again == body
        assert again.name == body.name


def test_a_name_does_not_hang_on_a_numbers_last_bits():
    """Sines differ in them from one processor to the next."""
    body = heldout("action", 1, 0)[0]
    data = body.to_dict()

    def nudged(value, by: float):
        if isinstance(value, dict):
            return {name: nudged(part, by) for name, part in value.items()}
        if isinstance(value, list):
            return [nudged(part, by) for part in value]
        return value * (1 + by) if isinstance(value, float) else value

    moved = {name: nudged(data[name], 1e-15) for name in ("camera", "wrist", "action_space", "state_space")}
    assert BodySpec.from_dict({**data, **moved}).name == body.name
    assert BodySpec.from_dict({**data, "camera": nudged(data["camera"], 1e-6)}).name != body.name


def test_a_broken_description_is_named():
    with pytest.raises(ValueError, match=r"not a body specification.*camera"):
        BodySpec.from_dict({"arm": "panda", "gripper": "panda"})


def bearings(bodies: list[BodySpec]) -> np.ndarray:
    """From where cameras stand, not from the angle that they were made with."""
    towards = np.array([body.camera.position - np.asarray(body.camera.lookat) for body in bodies])
    return np.degrees(np.arctan2(towards[:, 1], towards[:, 0]))


def x_azimuths(frames: list[LinearFrame]) -> np.ndarray:
    """Where a step along x goes in a body's numbers, scales undone."""
    moved = np.array(
        [(frame.apply(np.array([1.0, 0.0, 0.0])) - np.array(frame.offset)) / frame.scales for frame in frames]
    )
    return np.degrees(np.arctan2(moved[:, 1], moved[:, 0]))


def least_gap(source: np.ndarray, unseen: np.ndarray) -> float:
    return np.abs((source[:, None] - unseen[None] + 180.0) % 360.0 - 180.0).min()


def test_heldout_cameras_are_apart_from_all_sources():
    sources = [*sample_rigs(100, seed=0), *sample_bodies(50, 1, "source", "camera")]
    for scenario in ("camera", "all"):
        assert least_gap(bearings(sources), bearings(heldout(scenario, 100))) > regions.CAMERA_GUARD
    # The other scenarios are not about cameras.
    assert all(regions.bearing_region(body.camera.azimuth) == "source" for body in heldout("action"))
    assert all(regions.wrist_region(body.wrist.bearing) == "heldout" for body in heldout("camera"))
    assert all(regions.wrist_region(body.wrist.bearing) == "source" for body in heldout("robot"))


def test_heldout_frames_are_apart_from_all_sources():
    rng = np.random.default_rng(0)
    sources = [regions.sample_frame(rng, "source", 0.05, width) for width in (0.1, 0.5, 1.0) for _ in range(50)]
    for scenario in ("action", "all"):
        bodies = heldout(scenario, 60)
        for frames in ([b.action_space.frame for b in bodies], [b.state_space.frame for b in bodies]):
            assert least_gap(x_azimuths(sources), x_azimuths(frames)) > regions.FRAME_GUARD


def test_heldout_joint_orders_never_occur_in_sources():
    rng = np.random.default_rng(0)
    first = {regions.sample_joint_frame(rng, "source", 7).permutation[0] for _ in range(200)}
    unseen = {body.action_space.frame.permutation[0] for body in heldout("joint")}
    assert first.isdisjoint(unseen)
    assert first | unseen == set(range(7))


def test_frames_mirror_rotate_and_scale():
    matrices = [np.array(body.action_space.frame.matrix) for body in heldout("action", 100)]
    mirrored = np.mean([np.linalg.det(matrix) < 0 for matrix in matrices])
    assert 0.3 < mirrored < 0.7
    scales = np.array([np.linalg.norm(matrix, axis=1) for matrix in matrices])
    assert scales.min() >= 0.5 and scales.max() <= 2.0 and scales.std() > 0.3


def test_who_is_unseen_in_which_scenario():
    arms = {scenario: {body.arm for body in heldout(scenario)} for scenario in SCENARIOS}
    assert arms == {"camera": {"panda"}, "action": {"panda"}, "joint": {"panda"}, "robot": {"ur5e"}, "all": {"ur5e"}}
    for scenario in SCENARIOS:
        seen = sample_bodies(20, 0, "source", scenario)
        assert "ur5e" not in {body.arm for body in seen}
        looks = {body.appearance_seed for body in heldout(scenario)}
        assert looks.isdisjoint(body.appearance_seed for body in [*seen, *sample_rigs(50, 0)])
    assert {body.gripper for body in heldout("robot")} == {"panda"}
    assert {body.action_space.kind for body in heldout("joint")} == {"joint_delta"}


def test_rigs_take_turns_among_robots_and_refuse_the_unseen_arm():
    rigs = sample_rigs(10, seed=3)
    assert [rig.arm for rig in rigs[:5]] == [rig.arm for rig in rigs[5:]]
    assert len({rig.arm for rig in rigs}) == 5
    assert all(rig.action_space == ActionSpace() and rig.state_space == StateSpace() for rig in rigs)
    with pytest.raises(ValueError, match="ur5e"):
        sample_rigs(3, 0, (("ur5e", "panda"),))
    with pytest.raises(ValueError, match="got none"):
        sample_rigs(3, 0, ())


def test_rigs_share_cameras_by_turns_and_differ_in_nothing_else():
    rigs, shared = sample_rigs(6, seed=3), sample_rigs(6, seed=3, cameras=2)
    assert [rig.camera for rig in shared] == [rigs[0].camera, rigs[1].camera] * 3
    assert [rig.wrist for rig in shared] == [rigs[0].wrist, rigs[1].wrist] * 3
    assert [replace(a, camera=b.camera, wrist=b.wrist) for a, b in zip(rigs, shared, strict=True)] == shared
    with pytest.raises(ValueError, match="cameras=0"):
        sample_rigs(6, 3, cameras=0)


@pytest.mark.parametrize("region", ["source", "heldout"])
def test_cameras_keep_the_workspace_in_view_and_cubes_large(region):
    rng = np.random.default_rng(5)
    corners = np.array(np.meshgrid([-0.15, 0.15], [-0.15, 0.15], [0.0, 0.2])).reshape(3, -1).T
    for _ in range(50):
        camera = sample_camera(rng, region)
        assert camera.project(corners).min() >= 0.0 and camera.project(corners).max() <= 1.0
        edges = np.array([[0.0, -0.02, 0.02], [0.0, 0.02, 0.02], [-0.02, 0.0, 0.02], [0.02, 0.0, 0.02]])
        a, b, c, d = camera.project(edges) * 96
        assert max(np.linalg.norm(a - b), np.linalg.norm(c - d)) >= 5.0


@pytest.fixture(scope="module")
def ur5e():
    with Simulation("ur5e_panda") as sim:
        yield sim


@pytest.mark.parametrize("kind", ACTION_KINDS)
def test_an_action_in_a_bodys_numbers_moves_the_robot_as_the_canonical_one_did(ur5e, kind):
    rng = np.random.default_rng(1)
    space, _ = sample_spaces(rng, "heldout", kind, ur5e.robot.num_joints)
    deltas = rng.uniform(-0.6, 0.6, size=(6, 3))

    ur5e.reset(np.array([0.0, 0.0, 0.15]))
    controller = Controller(ur5e)
    motions = [controller.move_tip(delta, -1.0) for delta in deltas]
    tip = ur5e.tip

    ur5e.reset(np.array([0.0, 0.0, 0.15]))
    controller = Controller(ur5e)
    for motion in motions:
        again = space.execute(controller, space.encode(motion))
        assert again.joint_target == pytest.approx(motion.joint_target, abs=5e-3)
    assert ur5e.tip == pytest.approx(tip, abs=2e-3)


def test_targets_stay_in_the_workspace_and_near_the_arm(ur5e):
    ur5e.reset(np.array([0.1, 0.0, 0.05]))
    controller = Controller(ur5e)
    for _ in range(12):
        motion = controller.move_tip(np.array([1.0, 0.0, -1.0]), 1.0)
        assert np.linalg.norm(motion.tip_target - ur5e.tip) < 0.1
    assert motion.tip_target == pytest.approx([0.16, 0.0, 0.02], abs=1e-3)
    assert motion.delta == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_states_are_what_their_frames_say():
    tip, joints = np.array([0.1, -0.05, 0.2]), np.arange(7.0) / 10
    frame = LinearFrame.build(np.eye(3)[[1, 0, 2]], scale=(2, 1, 1), offset=(0, 0, 1))
    assert StateSpace("ee", frame).encode(tip, joints, 0.5) == pytest.approx([-0.1, 0.1, 1.2, 0.5])
    order = JointFrame((6, 5, 4, 3, 2, 1, 0), (-1.0,) + (1.0,) * 6, (1.0,) * 7, (0.0,) * 7)
    assert StateSpace("joint", order).encode(tip, joints, 0.5)[:2] == pytest.approx([-0.6, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActionSpace("torque"), "unknown action kind 'torque'"),
        (lambda: ActionSpace("joint_delta", LinearFrame.build(np.eye(3), (1, 1, -1))), "must be a JointFrame"),
        (lambda: ActionSpace("ee_delta", JointFrame.identity(7)), "must be a LinearFrame"),
        (lambda: ActionSpace("ee_delta", LinearFrame(offset=(1, 0, 0))), "no offset"),
        (lambda: BodySpec(action_space=ActionSpace("joint_delta", JointFrame.identity(6))), "7 joints"),
        (lambda: BodySpec(arm="r2d2"), "unknown arm"),
        (lambda: sample_bodies(1, 0, "heldout", "moon"), "unknown region or scenario"),
    ],
)
def test_impossible_bodies_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_actions_of_a_wrong_length_are_refused(ur5e):
    with pytest.raises(ValueError, match="takes 7 finite numbers"):
        ActionSpace("joint_delta").execute(Controller(ur5e), np.zeros(4))
    with pytest.raises(ValueError, match="finite"):
        ActionSpace().execute(Controller(ur5e), np.array([0.0, np.nan, 0.0, 1.0]))


def test_dimensions():
    six, seven = RobotSpec("ur5e"), RobotSpec("panda")
    assert [ActionSpace("joint_delta").dim(six), ActionSpace("joint_absolute").dim(seven), ActionSpace().dim(six)] == [
        7,
        8,
        4,
    ]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_before_the_change_a_body_differs_in_what_the_scenario_is_about_alone(scenario):
    for seed, body in enumerate(sample_bodies(6, 3, "heldout", scenario)):
        before = before_change(body, scenario, seed)
        fields = [f.name for f in dataclasses.fields(body)]
        differing = {name for name in fields if getattr(before, name) != getattr(body, name)}
        assert differing and differing <= {*CHANGED[scenario]}
        assert before == before_change(body, scenario, seed) != before_change(body, scenario, seed + 1)
        if scenario in ("camera", "all"):
            assert regions.bearing_region(before.camera.azimuth) == "source"
        if scenario != "camera":
            assert scenario == "robot" or before.action_space != body.action_space
        assert scenario not in ("robot", "all") or before.arm in regions.SOURCE_ARMS


def test_no_two_scenarios_or_regions_share_a_draw():
    bodies = [b for s in SCENARIOS for region in regions.REGIONS for b in sample_bodies(3, 5, region, s)]
    for drawn in ([body.camera for body in bodies], [body.wrist for body in bodies]):
        assert len(set(drawn)) == len(bodies)
    looks = [body.appearance_seed % regions.HELDOUT_APPEARANCE for body in bodies]
    assert len(set(looks)) == len(bodies)


def test_both_cameras_of_bodies_that_differ_in_all_are_held_out():
    for body in heldout("all"):
        assert regions.bearing_region(body.camera.azimuth) == "heldout"
        assert regions.wrist_region(body.wrist.bearing) == "heldout"


def test_positions_have_an_origin_of_their_own_and_displacements_have_none():
    rng = np.random.default_rng(0)
    for kind, moved in (("ee_delta", False), ("ee_absolute", True)):
        action, state = sample_spaces(rng, "heldout", kind, 7)
        assert any(action.frame.offset) == moved and any(state.frame.offset)
        assert np.abs([action.frame.offset, state.frame.offset]).max() <= regions.STATE_OFFSET
        assert action.frame.offset != state.frame.offset


def test_a_joint_body_reports_its_joints_as_it_takes_commands():
    for body in [*heldout("joint", 5), *sample_bodies(5, 0, "source", "joint")]:
        assert body.state_space.frame == body.action_space.frame


def test_virtual_bodies_are_canonical_at_width_0_and_any_at_width_1():
    rng, rig = np.random.default_rng(0), {"arm": "panda", "gripper": "panda"}
    narrow, wide = ([source_perturbation(rng, rig, width) for _ in range(200)] for width in (0.0, 1.0))
    assert {frame for body in narrow for frame in (body.action_frame, body.state_frame)} == {LinearFrame()}
    joint = sum(not isinstance(body.action_frame, LinearFrame) for body in wide)
    assert 0 < joint < 30 and all(body.state_frame != LinearFrame() for body in wide)


@pytest.mark.parametrize("kind", ["ee_delta", "ee_absolute", "joint_absolute"])
def test_bounds_are_the_smallest_box_around_all_corners(kind):
    space, _ = sample_spaces(np.random.default_rng(1), "heldout", kind, 7)
    dims = 7 if kind.startswith("joint") else 3
    low, high = -np.linspace(0.1, 0.5, dims), np.linspace(0.3, 0.2, dims)
    corners = space.to_body(np.array(list(itertools.product(*zip(low, high, strict=True)))))
    np.testing.assert_allclose(space.bounds(low, high), [corners.min(axis=0), corners.max(axis=0)], atol=1e-12)
