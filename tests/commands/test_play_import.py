"""Recordings become play: which episodes, which cameras, what is kept and what is refused."""

import numpy as np
import pytest

from data.factory import BODIES, make_episode
from selfalign.commands.play_import import ImportConfig, run
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import Play
from selfalign.data.sources import SourceData
from selfalign.data.transforms import resize_with_pad

NAMES = {"observation.state": ["x", "y", "z", "opening"], "action": ["x", "y", "z", "gripper"]}


def cameras(seed: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed + 100)
    return {c: rng.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8) for c in ("front", "hand")}


@pytest.fixture(scope="module")
def episodes():
    return [make_episode(i, 10 + i, images=cameras(i, 10 + i)) for i in range(6)]


@pytest.fixture
def recordings(tmp_path, episodes):
    with LeRobotWriter(tmp_path / "recordings", embodiments=BODIES, names=NAMES) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    return f"lerobot:{tmp_path / 'recordings'}"


def test_play_is_one_robots_motion_without_words(recordings, episodes, tmp_path):
    config = ImportConfig(recordings, tmp_path / "play", {"scene": "front"}, embodiment_index=1, name="mine")
    play = Play.open(run(config))
    taken = [e for e in episodes if e.embodiment_index == 1]
    assert play.embodiment["name"] == "mine" and play.cameras == ("scene",) and len(play) == len(taken)
    for found, expected in zip(play.episodes, taken, strict=True):
        np.testing.assert_array_equal(found.images["scene"], expected.images["front"])
        np.testing.assert_array_equal(found.state, expected.state)
        np.testing.assert_array_equal(found.action, expected.action)
        assert found.is_play and found.task == "" and not found.extra
    assert SourceData.open(tmp_path / "play").info.features["action"].names == NAMES["action"]


def test_pictures_are_resized_and_stored_as_video(recordings, episodes, tmp_path):
    config = ImportConfig(recordings, tmp_path / "play", embodiment_index=0, image_size=32, video=True)
    reader = SourceData.open(run(config)).readers[0]
    assert set(reader.info.cameras) == {"front", "hand"} and reader.info.features["observation.images.hand"].is_video
    expected = resize_with_pad(episodes[0].images["hand"], 32, 32)
    assert abs(reader[0].images["hand"].astype(float) - expected).mean() < 20  # of noise, which video keeps badly


def test_a_robots_file_names_the_cameras(tmp_path):
    names = "base_0_rgb", "left_wrist_0_rgb"
    with LeRobotWriter(tmp_path / "franka") as writer:
        numbers = {name: np.zeros((4, 8), np.float32) for name in ("state", "action")}
        renamed = dict(zip(("front", "wrist"), cameras(0, 4).values()))
        writer.add_episode(make_episode(0, 4, images=renamed, **numbers, extra={}))
    play = Play.open(run(ImportConfig(str(tmp_path / "franka"), tmp_path / "play", robot="franka_joint")))
    assert play.cameras == names


def test_episodes_are_chosen_in_order(recordings, tmp_path):
    source = SourceData.open(recordings)
    assert source.of_robot(0) == [0, 2, 4] and source.of_robot(0, play_only=True) == [0]
    with pytest.raises(ValueError, match=r"no episode of play of robot 7, only of \[0, 1\]"):
        source.of_robot(7, play_only=True)
    config = ImportConfig(recordings, tmp_path / "play", embodiment_index=1, seconds=0.6)
    assert [len(e) for e in Play.open(run(config)).episodes] == [11, 13]  # 11 frames are 0.55 s


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embodiment_index": None}, r"robots \[0, 1\]: choose one with --embodiment-index"),
        ({"embodiment_index": 5}, "no episode of robot 5"),
        ({"cameras": {"scene": "side"}}, "has no camera side; it has front, hand"),
        ({"robot": "droid"}, "pictures that nobody reads"),
        ({"seconds": 0.0}, "--seconds must be above 0, got 0; leave it out to take all"),
        ({"seconds": -5.0}, "--seconds must be above 0, got -5"),
        ({"source": "zarr:/tmp"}, "unknown kind of data set 'zarr'"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(recordings, tmp_path, changes, message):
    settings = {"source": recordings, "out": tmp_path / "play", "embodiment_index": 0}
    with pytest.raises(ValueError, match=message):
        run(ImportConfig(**{**settings, **changes}))
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


def test_nan_is_refused_and_leaves_nothing(tmp_path):
    bad = make_episode(0)
    bad.action[3, 2] = np.nan
    with LeRobotWriter(tmp_path / "bad") as writer:
        writer.add_episode(bad)
    with pytest.raises(ValueError, match="nan in episode 0, frame 3, column 'action', dimension 2"):
        run(ImportConfig(str(tmp_path / "bad"), tmp_path / "play"))
    assert not (tmp_path / "play").exists()
