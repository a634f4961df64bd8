import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from selfalign.embodiments.steps import DeltaActions, DeltaPose, Numbers, make_bool_mask


def test_masks_are_runs():
    assert make_bool_mask(2, -2, 1) == (True, True, False, False, True)
    assert make_bool_mask(2, 0, 2) == (True,) * 4


def test_targets_become_displacements_where_the_mask_says():
    numbers = Numbers(np.array([1.0, 2.0, 3.0]), np.array([[1.5, 1.0, 9.0, 7.0], [2.0, 2.0, 8.0, 6.0]]))
    state, actions = DeltaActions((True, True, False)).forward(numbers)
    np.testing.assert_array_equal(actions, [[0.5, -1.0, 9.0, 7.0], [1.0, 0.0, 8.0, 6.0]])
    np.testing.assert_array_equal(state, [1, 2, 3])
    np.testing.assert_array_equal(numbers.actions[0], [1.5, 1.0, 9.0, 7.0], err_msg="what was given stays as it was")


def poses(rng: np.random.Generator, *lead: int) -> np.ndarray:
    """Position, rotation vector and gripper."""
    turns = Rotation.random(int(np.prod(lead)), rng).as_rotvec().reshape(*lead, 3)
    return np.concatenate([rng.normal(size=(*lead, 3)), turns, rng.uniform(size=(*lead, 1))], axis=-1)


def test_poses_become_relative_to_the_state_as_scipy_has_it():
    rng = np.random.default_rng(0)
    state, actions = poses(rng, 5), poses(rng, 5, 3)
    relative = DeltaPose().forward(Numbers(state, actions)).actions
    for i in range(5):
        np.testing.assert_allclose(relative[i, :, :3], actions[i, :, :3] - state[i, :3])
        turned = Rotation.from_rotvec(actions[i, :, 3:6]) * Rotation.from_rotvec(state[i, 3:6]).inv()
        np.testing.assert_allclose(relative[i, :, 3:6], turned.as_rotvec(), atol=1e-12)
    np.testing.assert_array_equal(relative[..., 6], actions[..., 6])


@pytest.mark.parametrize("step", [DeltaActions(make_bool_mask(6, -1)), DeltaPose()])
@given(seed=st.integers(0, 2**32 - 1), lead=st.lists(st.integers(1, 3), max_size=2))
@settings(max_examples=25, deadline=None)
def test_steps_can_be_undone(step, seed, lead):
    rng = np.random.default_rng(seed)
    numbers = Numbers(poses(rng, *lead, 1)[..., 0, :], poses(rng, *lead, 4))
    back = step.inverse(step.forward(numbers))
    np.testing.assert_allclose(back.actions, numbers.actions, atol=1e-9)
    np.testing.assert_array_equal(back.state, numbers.state)
    assert step.forward(Numbers(numbers.state)).actions is None
    single = Numbers(*(x.astype(np.float32) for x in numbers))
    assert step.forward(single).actions.dtype == np.float32


def test_a_rotation_that_is_none_stays_none():
    state = np.array([0, 0, 0, 0.1, -0.2, 0.3, 1.0])
    np.testing.assert_allclose(DeltaPose().forward(Numbers(state, state[None])).actions[0, 3:6], 0, atol=1e-15)


def test_too_few_dimensions_are_named():
    with pytest.raises(ValueError, match="mask has 7 dimensions, the state 6 and the actions 7"):
        DeltaActions(make_bool_mask(7)).forward(Numbers(np.zeros(6), np.zeros((2, 7))))
    with pytest.raises(ValueError, match="a pose has 6 dimensions, the actions have 4"):
        DeltaPose().forward(Numbers(np.zeros(7), np.zeros((2, 4))))
