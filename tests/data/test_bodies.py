import numpy as np
import pytest

from data.factory import make_episode
from selfalign.data.bodies import RecordedBodies, count_joints, space_of
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
    with pytest.raises(ValueError, match=r"does not name the dimensions .* say --bodies xyz"):
        RecordedBodies.of(source(tmp_path / "data"))
