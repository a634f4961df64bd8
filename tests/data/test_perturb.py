import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from selfalign.data.perturb import (
    EmbodimentPerturbation,
    JointFrame,
    LinearFrame,
    accumulate,
    frame_from_dict,
    random_rotation,
)

seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-10, 10, allow_nan=False, width=32)


def arrays(dims: int):
    lead = hnp.array_shapes(min_dims=0, max_dims=2, max_side=5)
    return lead.flatmap(lambda shape: hnp.arrays(np.float64, (*shape, dims), elements=numbers))


@given(seeds, arrays(4))
def test_linear_frames_invert_and_leave_the_gripper(seed, values):
    frame = LinearFrame.sample(np.random.default_rng(seed), offset=0.5)
    mapped = frame.apply(values)
    np.testing.assert_allclose(frame.invert(mapped), values, atol=1e-10)
    np.testing.assert_allclose(frame.apply(frame.invert(values)), values, atol=1e-10)
    np.testing.assert_array_equal(mapped[..., 3], values[..., 3])


@given(seeds, st.integers(1, 7), st.data())
def test_joint_frames_invert_and_leave_the_gripper(seed, joints, data):
    values = data.draw(arrays(joints + 1))
    frame = JointFrame.sample(np.random.default_rng(seed), joints, offset=0.5)
    mapped = frame.apply(values)
    np.testing.assert_allclose(frame.invert(mapped), values, atol=1e-10)
    np.testing.assert_allclose(frame.apply(frame.invert(values)), values, atol=1e-10)
    np.testing.assert_array_equal(mapped[..., joints], values[..., joints])


@given(seeds, st.booleans(), st.booleans(), hnp.arrays(np.float64, (2, 9, 8), elements=numbers))
@settings(max_examples=50)
def test_perturbations_of_episodes_invert(seed, absolute, joint, values):
    rng = np.random.default_rng(seed)
    action_frame = JointFrame.sample(rng, 7) if joint else LinearFrame.sample(rng)
    change = EmbodimentPerturbation(action_frame, LinearFrame.sample(rng, offset=1.0), absolute)
    origin = rng.normal(size=change.dims) if absolute else None
    state, action = change.invert(*change.apply(values[0], values[1], origin), origin)
    np.testing.assert_allclose(state, values[0], atol=1e-9)
    np.testing.assert_allclose(action, values[1], atol=1e-8)
    assert change.exact


@given(seeds, st.booleans())
def test_json_gives_the_same_value_back(seed, joint):
    rng = np.random.default_rng(seed)
    frame = JointFrame.sample(rng, 6, offset=0.1) if joint else LinearFrame.sample(rng, offset=0.1)
    again = frame_from_dict(json.loads(json.dumps(frame.to_dict())))
    assert again == frame and hash(again) == hash(frame)
    change = EmbodimentPerturbation(frame.without_offset(), frame, absolute=True, step=0.1)
    assert EmbodimentPerturbation.from_dict(json.loads(json.dumps(change.to_dict()))) == change


def test_a_frame_is_the_matrix_it_says():
    quarter_turn = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    frame = LinearFrame.build(quarter_turn, flips=(1, 1, -1), scale=(2, 1, 0.5), offset=(0, 0, 1))
    np.testing.assert_allclose(frame.apply(np.array([1.0, 2.0, 3.0, 9.0])), [-4, 1, -0.5, 9])
    assert frame.x_azimuth == 90
    assert frame.scales == (2, 1, 0.5)
    np.testing.assert_array_equal(frame.axes, [[0, -1, 0], [1, 0, 0], [0, 0, -1]])


def test_a_joint_frame_is_the_order_it_says():
    frame = JointFrame((2, 0, 1), (1, -1, 1), (1, 2, 3), (0, 0, 10))
    np.testing.assert_allclose(frame.apply(np.array([1.0, 2.0, 3.0, 7.0])), [3, -2, 16, 7])


def test_float32_stays_float32():
    values = np.ones((5, 4), np.float32)
    assert LinearFrame().apply(values).dtype == np.float32
    assert JointFrame.identity(3).invert(values).dtype == np.float32


def test_the_arguments_are_not_changed():
    values = np.ones((5, 4))
    LinearFrame.sample(np.random.default_rng(0)).apply(values)
    np.testing.assert_array_equal(values, 1)


def test_sampled_frames_are_haar_times_scale():
    rng = np.random.default_rng(0)
    frames = [LinearFrame.sample(rng, scale=(0.5, 2.0)) for _ in range(2000)]
    axes = np.stack([frame.axes for frame in frames])
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), axes.shape), atol=1e-12)
    scales = np.array([frame.scales for frame in frames])
    assert 0.5 <= scales.min() < 0.51 and 1.96 < scales.max() <= 2.0
    assert kstest(axes[:, 2, 0], "uniform", (-1, 2)).pvalue > 0.01  # a coordinate on the sphere is uniform (Archimedes)
    assert kstest(np.log2(scales).ravel(), "uniform", (-1, 2)).pvalue > 0.01
    assert 0.45 < (np.linalg.det(axes) > 0).mean() < 0.55


def test_rotations_are_rotations():
    rotation = random_rotation(np.random.default_rng(3))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize("width", [0.0, 0.3, 1.0])
def test_the_width_shrinks_angles_scales_offsets_and_flips(width):
    angle = Rotation.from_matrix(random_rotation(np.random.default_rng(3))).magnitude()
    narrow = Rotation.from_matrix(random_rotation(np.random.default_rng(3), width)).magnitude()
    assert narrow == pytest.approx(width * angle, abs=1e-7)
    rng = np.random.default_rng(0)
    frames = [LinearFrame.sample(rng, scale=(0.5, 2.0), offset=0.1, width=width) for _ in range(500)]
    assert np.abs(np.log2([frame.scales for frame in frames])).max() <= width + 1e-9
    assert np.abs([frame.offset for frame in frames]).max() <= 0.1 * width
    mirrored = np.mean([np.linalg.det(frame.axes) < 0 for frame in frames])
    flip = width / 2
    assert mirrored == pytest.approx(3 * flip * (1 - flip) ** 2 + flip**3, abs=0.07)  # an odd number of flips
    if width == 0:
        assert all(frame == LinearFrame() for frame in frames)


def test_sampling_is_seeded_and_keeps_to_its_region():
    def region(frame: LinearFrame) -> bool:
        return abs(frame.x_azimuth) < 15

    rng = np.random.default_rng(0)
    assert all(region(LinearFrame.sample(rng, region)) for _ in range(20))
    assert LinearFrame.sample(np.random.default_rng(7)) == LinearFrame.sample(np.random.default_rng(7))
    with pytest.raises(ValueError, match="region is empty"):
        JointFrame.sample(rng, 2, lambda frame: False)


@pytest.mark.parametrize("dims", [1, 2, 3, 7])
def test_the_identity_leaves_any_number_of_dimensions_as_they_are(dims):
    values = np.random.default_rng(0).normal(size=(5, dims)).astype(np.float32)
    for change in (LinearFrame().apply, LinearFrame().invert):
        found = change(values)
        np.testing.assert_array_equal(found, values)
        assert found is not values and found.dtype == np.float32


def test_absolute_actions_are_running_sums():
    action = np.array([[1.0, 0, 0, 1], [1, 2, 0, -1]])
    targets = accumulate(action, np.array([10.0, 0, 0]), step=0.5)
    np.testing.assert_allclose(targets, [[10.5, 0, 0, 1], [11, 1, 0, -1]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearFrame(((1, 0, 0), (0, 1, 0), (0, 0, 0))), "invertible"),
        (lambda: LinearFrame(((1, 0), (0, 1))), "3x3"),
        (lambda: JointFrame((0, 0), (1, 1), (1, 1), (0, 0)), "no permutation"),
        (lambda: JointFrame((0, 1), (1, 2), (1, 1), (0, 0)), "signs must be"),
        (lambda: JointFrame((0, 1), (1,), (1, 1), (0, 0)), "2 joints in the permutation, 1 in sign"),
        (lambda: LinearFrame(offset=(1, 0, 0)).apply(np.zeros((5, 2))), "maps 3 dimensions"),
        (lambda: EmbodimentPerturbation(LinearFrame(offset=(1, 0, 0))), "no offset"),
        (lambda: EmbodimentPerturbation(absolute=True).apply(np.zeros((2, 4)), np.zeros((2, 4))), "origin"),
        (lambda: frame_from_dict({"type": "affine"}), "unknown frame type 'affine'"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
