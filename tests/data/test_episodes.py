import numpy as np
import pytest

from data.factory import make_episode


def test_an_observation_is_one_frame_under_lerobot_names():
    episode = make_episode(1)
    observation = episode.observation(3)
    assert set(observation) == {"observation.images.scene", "observation.state", "task"}
    np.testing.assert_array_equal(observation["observation.images.scene"], episode.images["scene"][3])
    np.testing.assert_array_equal(observation["observation.state"], episode.state[3])
    assert observation["task"] == "reach the red cube"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.zeros((11, 4), np.float32)}, "'observation.state' has 11 frames, the actions have 12"),
        ({"state": np.zeros(12, np.float32)}, r"state must have shape \[T, D\], got \[12\]"),
        ({"images": {"scene": np.zeros((12, 8, 8, 3), np.float32)}}, "camera 'scene' must be uint8"),
        ({"images": {"scene": np.zeros((12, 3, 8, 8), np.uint8)}}, "camera 'scene' must be uint8"),
        ({"extra": {"reward": np.zeros(3)}}, "'reward' has 3 frames"),
        ({"action": np.zeros((0, 4), np.float32)}, "at least one frame"),
    ],
)
def test_malformed_episodes_are_refused(as_users_run, changes, message):
    with pytest.raises(ValueError, match=message):
        make_episode(0, **changes)
