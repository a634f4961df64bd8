import json

import numpy as np
import pytest

from data.factory import make_episode
from selfalign.data.bodies import RecordedBodies, count_joints, kind_of_actions, space_of
from selfalign.data.changes import InFrames, RemadeBody
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.sources import SourceData


def source(root, names=None):
    with LeRobotWriter(root, names=names or {}) as writer:
        writer.add_episode(make_episode(1, embodiment_index=0))
    return SourceData.open(root)


@pytest.mark.parametrize(
    ("names", "space"),
    [
        (("x", "y", "z", "gripper"), "xyz"),
        (("tcp.x", "tcp.y", "tcp.z", "rx", "ry", "rz"), "xyz"),
        (("shoulder_pan.pos", "elbow.pos", "gripper.pos"), "joints"),
        (("joint_x", "joint_y"), "joints"),
        ((), None),
    ],
)
def test_names_tell_what_dimensions_are(names, space):
    assert space_of(names) == space


def test_joints_end_at_the_gripper():
    assert count_joints(("left_a", "left_b", "left_gripper", "right_a", "right_gripper"), 5) == 2
    assert count_joints(("a", "b", "c"), 3) == 3
    assert count_joints((), 7) == 6


def test_bodies_of_named_dimensions(tmp_path):
    names = {"observation.state": ["a", "b", "c", "gripper"], "action": ["x", "y", "z", "gripper"]}
    draw = RecordedBodies.of(source(tmp_path / "data", names))
    assert draw == RecordedBodies("xyz", "joints", 3, 3)
    body = draw(np.random.default_rng(0), {})
    assert isinstance(body.action_frame, LinearFrame) and isinstance(body.state_frame, JointFrame)
    assert body == draw(np.random.default_rng(0), {}), "seeded"


def test_joints_of_state_and_action_are_the_same_ones(tmp_path):
    draw = RecordedBodies.of(source(tmp_path / "data"), "joints")
    for seed in range(10):
        body = draw(np.random.default_rng(seed), {})
        assert body.action_frame == body.state_frame and body.action_frame.joints == 3


@pytest.mark.parametrize("space", ["xyz", "joints", "none"])
def test_width_0_is_the_recorded_body(space):
    draw = RecordedBodies(space, space, 3, 3)
    values = np.random.default_rng(1).normal(size=(5, 4))
    for seed in range(5):
        state, action = draw(np.random.default_rng(seed), {}, 0.0).apply(values, values)
        np.testing.assert_array_equal(state, values)
        np.testing.assert_array_equal(action, values)
    assert draw(np.random.default_rng(0), {}) != EmbodimentPerturbation() or space == "none"


def test_unnamed_dimensions_must_be_told(tmp_path):
    with pytest.raises(ValueError, match=r"does not name each dimension .* say --bodies xyz"):
        RecordedBodies.of(source(tmp_path / "data"))


XYZ = ["x", "y", "z", "gripper"]


def named(root, names):
    """A data set of 4 states and 4 actions that calls them so in `meta/info.json`."""
    source(root)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for column in ("observation.state", "action"):
        info["features"][column]["names"] = names
    path.write_text(json.dumps(info))
    return SourceData.open(root)


@pytest.mark.parametrize("names", [[XYZ], {"a": ["x", "y"], "b": ["z", "gripper"]}, {"motors": {"arm": XYZ}}])
def test_names_may_lie_in_groups_and_lists(tmp_path, names):
    assert RecordedBodies.of(named(tmp_path / "data", names)) == RecordedBodies("xyz", "xyz", 3, 3)


@pytest.mark.parametrize("names", [["actions"], ["x", "y", "z"], {"motors": [*XYZ, "more"]}, "motors", 4, {"x": 0}])
def test_names_that_are_not_one_for_each_dimension_are_none(tmp_path, names):
    """openpi's conversion scripts call 7 actions `["actions"]`: the gripper must not go for a joint."""
    data = named(tmp_path / "data", names)
    with pytest.raises(ValueError, match=r"does not name each dimension of observation.state and action"):
        RecordedBodies.of(data)
    assert RecordedBodies.of(data, "joints") == RecordedBodies("joints", "joints", 3, 3), "all but the gripper"


def moving(root, kind: str, length: int = 40, noise: float = 0.1, seed: int = 0):
    """Two episodes of a body that moves as its actions say, but for noise."""
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, names={"observation.state": XYZ, "action": XYZ}) as writer:
        for start in (0.0, 5.0):  # far apart: what happens between episodes is no motion
            action = rng.normal(size=(length, 4)).astype(np.float32)
            moved = 0.05 * (action + noise * rng.normal(size=action.shape))
            state = (start + np.cumsum(moved, axis=0) - moved).astype(np.float32)
            if kind == "targets":
                action = (state + moved).astype(np.float32)
            elif kind == "noise":
                action = rng.normal(size=(length, 4)).astype(np.float32)
            numbers = {"state": state, "action": action, "extra": {}, "embodiment_index": 0}
            writer.add_episode(make_episode(1, length, size=(4, 4), **numbers))
    return SourceData.open(root)


def test_what_actions_are_shows_in_how_states_move(tmp_path):
    told = kind_of_actions(moving(tmp_path / "displacements", "displacements"), 3)
    assert told is not None and told[0] == "displacements" and told[1] == pytest.approx(0.05, rel=0.1)
    assert kind_of_actions(moving(tmp_path / "targets", "targets"), 3) == ("targets", 1.0)
    assert kind_of_actions(moving(tmp_path / "noise", "noise"), 3) is None


def test_bodies_have_the_changes_that_are_named(tmp_path):
    source = moving(tmp_path / "data", "displacements")
    named = ("frames", "rate", "targets", "joints")
    draw = RecordedBodies.of(source, None, named, horizon=8, room=5)
    assert draw.kind == "displacements" and draw.held == (3,) and draw.rates == (2, 3)
    bodies = [draw(np.random.default_rng(seed), {}) for seed in range(200)]
    made = [body for body in bodies if isinstance(body, RemadeBody)]
    assert {body.every for body in made} == {1, 2, 3} and {body.idle_joints for body in made} == {0, 1, 2}
    shares = [np.mean([isinstance(b, RemadeBody) and test(b) for b in bodies]) for test in (
        lambda b: b.every > 1, lambda b: b.swapped, lambda b: b.idle_joints > 0)]  # fmt: skip
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    assert bodies[:9] == [draw(np.random.default_rng(seed), {}) for seed in range(9)], "seeded"
    at_first = [draw(np.random.default_rng(seed), {}, 0.0) for seed in range(20)]
    assert all(body == EmbodimentPerturbation() for body in at_first), "width 0 is the recorded body"
    alone = RecordedBodies.of(source, None, ("rate",), horizon=8)
    frames = [
        b.frames if isinstance(b, RemadeBody) else b for b in (alone(np.random.default_rng(s), {}) for s in range(9))
    ]
    assert all(frame == EmbodimentPerturbation() for frame in frames)


def test_by_default_the_rate_is_changed_where_the_data_allow_it(tmp_path):
    assert RecordedBodies.of(moving(tmp_path / "a", "targets"), None, None, horizon=8).changes == ("frames", "rate")
    assert RecordedBodies.of(moving(tmp_path / "b", "noise"), None, None, horizon=8).changes == ("frames",)
    assert RecordedBodies.of(moving(tmp_path / "c", "targets", 12), None, None, horizon=8).changes == ("frames",)


@pytest.mark.parametrize(
    ("kind", "length", "change", "message"),
    [
        ("noise", 40, "targets", "neither displacements nor targets"),
        ("targets", 12, "rate", "play of 12 frames .* too short for chunks of 8 steps"),
        ("targets", 40, "joints", "no room for more numbers"),
    ],
)
def test_changes_that_the_data_do_not_allow_are_refused(tmp_path, kind, length, change, message):
    with pytest.raises(ValueError, match=message):
        RecordedBodies.of(moving(tmp_path / "data", kind, length), None, (change,), horizon=8)


def plane(root, names=None):
    """A robot of two numbers, as PushT's."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, names=names or {}) as writer:
        path = np.cumsum(rng.normal(size=(41, 2)), axis=0).astype(np.float32)
        numbers = {"state": path[:-1], "action": path[1:], "extra": {}, "embodiment_index": 0}
        writer.add_episode(make_episode(1, 40, size=(4, 4), **numbers))
    return SourceData.open(root)


@pytest.mark.parametrize("changes", [("frames",), ("frames", "rate", "targets", "joints")])
def test_robots_may_have_two_numbers(tmp_path, changes):
    data = plane(tmp_path / "data", {name: ["motor_0", "motor_1"] for name in ("observation.state", "action")})
    draw, episode = RecordedBodies.of(data, None, changes, horizon=8, room=1), data[0]
    for seed in range(20):
        body = draw(np.random.default_rng(seed), {})
        made = body.changes if isinstance(body, RemadeBody) else InFrames(body)
        found = made.invert(made.apply(episode))
        if not isinstance(body, RemadeBody) or body.every == 1:
            np.testing.assert_allclose(found.action, episode.action[: len(found)], atol=1e-4)


def test_the_one_body_of_two_numbers_is_the_recorded_one(tmp_path):
    data = plane(tmp_path / "data")
    for seed in range(3):
        state, action = RecordedBodies.of(data, "none")(np.random.default_rng(seed), {}).apply(
            data[0].state, data[0].action
        )
        np.testing.assert_array_equal(state, data[0].state)
        np.testing.assert_array_equal(action, data[0].action)


def test_two_numbers_are_no_position(tmp_path):
    with pytest.raises(
        ValueError, match=r"observation.state of 2 and action of 2 numbers, no position.*--bodies joints"
    ):
        RecordedBodies.of(plane(tmp_path / "data"), "xyz")
