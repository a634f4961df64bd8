import dataclasses

import numpy as np
import pytest
import torch

from align.factory import HORIZON, make_play, small_policy
from align.factory import make_episode as make_motion
from data.factory import make_episode
from selfalign.data.episodes import Episode, SparseEpisode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import Play


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


def seen_at(episode: Episode, moments: list[int]) -> SparseEpisode:
    """What a robot knows of an episode if it looks at those moments only."""
    fields = {f.name: getattr(episode, f.name) for f in dataclasses.fields(episode)}
    looks = np.array(moments)
    images = {camera: x[looks] for camera, x in episode.images.items()}
    return SparseEpisode(**fields | {"images": images, "state": episode.state[looks], "observed": looks})


@pytest.mark.parametrize(
    ("moments", "starts"),
    [([0, 2, 4, 6, 8], [0, 2, 4]), ([1, 5, 9], [1, 5]), ([0, 3, 7, 8, 11], [3, 7]), ([0, 3, 6], [])],
)
def test_transitions_of_what_was_seen_are_those_of_the_whole_episode(moments, starts):
    """Horizon 4: of moments 0, 3, 7, 8, 11 only (3, 7) and (7, 11) are 4 steps apart."""
    policy, whole = small_policy(), make_motion(3, length=12)
    play = make_play()
    sparse = Play.from_episodes([seen_at(whole, moments)])
    assert sparse.num_transitions(HORIZON) == len(starts)
    if not starts:
        with pytest.raises(ValueError, match="too short"):
            policy.transitions(sparse, play.stats())
        return
    expected = policy.transitions([whole], play.stats())
    actual = policy.transitions(sparse, play.stats())
    rows = torch.tensor(starts)
    torch.testing.assert_close(actual.observation.state, expected.observation.state[rows])
    torch.testing.assert_close(actual.actions.values, expected.actions.values[rows], rtol=0, atol=0)
    torch.testing.assert_close(actual.next_features, expected.next_features[rows])
    for camera, features in actual.observation.image_features.items():
        torch.testing.assert_close(features, expected.observation.image_features[camera][rows])


def test_the_moment_after_the_last_action_can_be_seen():
    episode = make_motion(0, length=9)
    sparse = dataclasses.replace(seen_at(episode, [0, 4, 8]), action=episode.action[:8])
    pairs = sparse.pairs(4)
    assert (pairs.now.tolist(), pairs.later.tolist(), pairs.step.tolist()) == ([0, 1], [1, 2], [0, 4])


def test_parts_of_what_was_seen_share_no_moment():
    sparse = seen_at(make_motion(0, length=20), [0, 3, 6, 10, 12, 19])
    first, second = sparse.part(0, 10), sparse.part(10, None)
    assert (first.observed.tolist(), second.observed.tolist()) == ([0, 3, 6], [0, 2, 9])
    assert (len(first), len(second)) == (10, 10)
    np.testing.assert_array_equal(second.state, sparse.state[3:])
    np.testing.assert_array_equal(second.action, sparse.action[10:])


@pytest.mark.parametrize("moments", [[], [0, 0], [3, 2], [-1, 2], [0, 13]])
def test_moments_that_make_no_sense_are_refused(as_users_run, moments):
    episode = make_motion(0, length=12)
    rows = max(1, len(moments))
    with pytest.raises(ValueError, match="the moments seen must rise from 0 at least to 12 at most"):
        SparseEpisode(
            images={"scene": episode.images["scene"][:rows]},
            state=episode.state[:rows],
            action=episode.action,
            observed=np.array(moments, dtype=np.int64),
        )


def test_sparse_episodes_are_not_written_as_a_data_set(tmp_path):
    with LeRobotWriter(tmp_path / "set", embodiments=[{"name": "toy"}]) as writer:
        writer.add_episode(make_motion(0, length=12))
        with pytest.raises(ValueError, match="seen at some of its frames only"):
            writer.add_episode(seen_at(make_motion(0, length=12), [0, 4]))
