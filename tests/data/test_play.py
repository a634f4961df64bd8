import numpy as np
import pytest

from data.factory import BODIES, make_episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import Play


def play_episodes(count: int = 5, length: int = 12):
    return [make_episode(seed, length, task="", embodiment_index=1, is_play=True) for seed in range(count)]


@pytest.fixture
def path(tmp_path):
    with LeRobotWriter(tmp_path / "play", embodiments=BODIES) as writer:
        for episode in play_episodes():
            writer.add_episode(episode)
    return tmp_path / "play"


def test_play_is_read_from_disk(path):
    play = Play.open(path)
    assert len(play) == 5 and play.num_frames == 60 and play.seconds == pytest.approx(3)
    assert play.embodiment == {"name": "right"}
    assert (play.cameras, play.state_dim, play.action_dim) == (("scene",), 4, 4)
    assert play.num_transitions(8) == 5 * 4
    np.testing.assert_array_equal(play.action(), np.concatenate([e.action for e in play_episodes()]))
    np.testing.assert_allclose(play.stats().state.mean, play.state().mean(axis=0), atol=1e-6)


def test_one_robot_of_several_is_chosen(tmp_path):
    with LeRobotWriter(tmp_path / "both", embodiments=BODIES) as writer:
        for seed in range(4):
            writer.add_episode(make_episode(seed))
    with pytest.raises(ValueError, match=r"holds 2 robots \[0, 1\]; choose one"):
        Play.open(tmp_path / "both")
    assert len(Play.open(tmp_path / "both", embodiment_index=1)) == 2
    with pytest.raises(ValueError, match="no episode of robot 5"):
        Play.open(tmp_path / "both", embodiment_index=5)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: the path does not exist"):
        Play.open(tmp_path / "nowhere")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("field", "column"), [("state", "observation.state"), ("action", "action")])
def test_nan_names_episode_frame_and_column(tmp_path, bad, field, column):
    episodes = play_episodes()
    getattr(episodes[3], field)[7, 2] = bad
    with LeRobotWriter(tmp_path / "play", embodiments=BODIES) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    with pytest.raises(ValueError, match=f"{bad} in episode 3, frame 7, column '{column}', dimension 2"):
        Play.open(tmp_path / "play")


def test_a_cut_off_file_is_named(path):
    file = path / "data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"file-000\.parquet is damaged or cut off"):
        Play.open(path)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"horizon": 12}, "needs 13 frames, the longest of 5 episodes has 12"),
        ({"horizon": 8, "cameras": ("wrist",)}, "has the cameras scene, the model knows wrist"),
        ({"horizon": 8, "action_dim": 3}, "4 action dimensions, the model takes at most 3"),
        ({"horizon": 8, "state_dim": 2}, "4 state dimensions, the model takes at most 2"),
    ],
)
def test_play_that_does_not_fit_a_model_says_why(needs, message):
    play = Play.from_episodes(play_episodes())
    play.require(11, cameras=("scene", "wrist"), state_dim=8, action_dim=8)
    with pytest.raises(ValueError, match=message):
        play.require(**needs)


def test_episodes_of_different_robots_are_refused():
    with pytest.raises(ValueError, match="episode 1 has 'action' of shape"):
        Play.from_episodes([make_episode(0), make_episode(1, action=np.zeros((12, 7), np.float32))])
    with pytest.raises(ValueError, match="episode 1 runs at 10"):
        Play.from_episodes([make_episode(0), make_episode(1, fps=10.0)])
    with pytest.raises(ValueError, match="no episode"):
        Play.from_episodes([])


def test_splits_keep_episodes_whole_and_are_seeded():
    play = Play.from_episodes(play_episodes(10))
    train, held = play.split(0.2, seed=3)
    assert (len(train), len(held)) == (8, 2)
    ids = [id(episode) for episode in (*train.episodes, *held.episodes)]
    assert sorted(ids) == sorted(map(id, play.episodes))
    assert [id(e) for e in play.split(0.2, seed=3)[1].episodes] == [id(e) for e in held.episodes]
    assert {tuple(map(id, play.split(0.2, seed)[1].episodes)) for seed in range(10)} != {tuple(map(id, held.episodes))}
    assert [len(part) for part in play.take(2).split(0.01)] == [1, 1]


@pytest.mark.parametrize(("holdout", "frames"), [(0.2, (40, 10)), (0.5, (25, 25))])
def test_one_episode_is_split_in_time(holdout, frames):
    play = Play.from_episodes(play_episodes(1, length=50))
    train, held = play.split(holdout)
    assert (train.num_frames, held.num_frames) == frames
    np.testing.assert_array_equal(np.concatenate([train.action(), held.action()]), play.action())
    with pytest.raises(ValueError, match="holdout"):
        play.split(1.0)


def test_what_is_taken_are_the_first_episodes():
    play = Play.from_episodes(play_episodes())
    for count, expected in ((2, play.episodes[:2]), (5, play.episodes), (9, play.episodes)):
        assert list(map(id, play.take(count).episodes)) == list(map(id, expected))
