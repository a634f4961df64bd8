"""Against the `lerobot` package itself, where it is installed (it is none of selfalign's dependencies)."""

from importlib.util import find_spec

import numpy as np
import pytest

from data import drawn
from data.factory import BODIES, make_episode
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.windows import FrameWindows

pytest.importorskip("lerobot")
HORIZON = 8
BACKEND = "torchcodec" if find_spec("torchcodec") else "pyav"
"""What LeRobot reads videos with; its PyAV way needs an older torchvision."""


@pytest.fixture
def episodes():
    return [make_episode(seed, length=9 + seed) for seed in range(4)]


def test_lerobot_reads_our_data_sets(tmp_path, episodes):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with LeRobotWriter(tmp_path / "ours", embodiments=BODIES) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    offsets = {"action": [step / 20 for step in range(HORIZON)]}
    dataset = LeRobotDataset("local/ours", root=tmp_path / "ours", delta_timestamps=offsets)
    assert dataset.num_episodes == len(episodes)
    frames = [(episode, t) for episode in episodes for t in range(len(episode))]
    for index, (episode, t) in enumerate(frames):
        item = dataset[index]
        pixels = (item["observation.images.scene"].numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), episode.images["scene"][t])
        np.testing.assert_array_equal(item["observation.state"].numpy(), episode.state[t])
        np.testing.assert_array_equal(item["privileged.points"].numpy(), episode.extra["privileged.points"][t])
        chunk = episode.action[t : t + HORIZON]
        np.testing.assert_array_equal(item["action"].numpy()[: len(chunk)], chunk)
        assert int(item["action_is_pad"].sum()) == HORIZON - len(chunk)
        assert item["task"] == episode.task and int(item["embodiment_index"]) == episode.embodiment_index


def test_lerobot_reads_our_videos(tmp_path):
    """Frames tell where they belong; LeRobot decodes them by itself."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with LeRobotWriter(tmp_path / "ours", fps=drawn.FPS, video=True, video_file_mb=0) as writer:
        for index, length in enumerate(drawn.LENGTHS):
            images = {
                camera: np.stack([drawn.draw(i, index, t) for t in range(length)])
                for i, camera in enumerate(drawn.CAMERAS)
            }
            state, action = drawn.numbers(index, "observation.state"), drawn.numbers(index, "action")
            writer.add_episode(Episode(images, state, action, task=drawn.task(index), fps=drawn.FPS))
    offsets = {"observation.images.wrist": [0.0, 0.3], "action": [0.0, 0.1]}
    dataset = LeRobotDataset(
        "local/ours", root=tmp_path / "ours", delta_timestamps=offsets, video_backend=BACKEND, tolerance_s=1e-4
    )
    frames = [(episode, t) for episode, length in enumerate(drawn.LENGTHS) for t in range(length)]
    assert len(dataset) == len(frames)
    windows = FrameWindows(LeRobotReader(tmp_path / "ours"), offsets)
    for index, (episode, t) in enumerate(frames):
        item, ours = dataset[index], windows[index]
        last = drawn.LENGTHS[episode] - 1
        wrist = (item["observation.images.wrist"].numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        assert [drawn.read(image) for image in wrist] == [(1, episode, t), (1, episode, min(t + 3, last))]
        np.testing.assert_array_equal(wrist, ours["observation.images.wrist"])
        for name in ("action", "action_is_pad", "observation.images.wrist_is_pad", "observation.state"):
            np.testing.assert_array_equal(item[name].numpy(), ours[name])
        assert item["task"] == ours["task"] == drawn.task(episode)


def test_we_read_lerobots_data_sets(tmp_path, episodes):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.images.scene": {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
        "privileged.points": {"dtype": "float32", "shape": (7, 4), "names": None},
    }
    dataset = LeRobotDataset.create(
        "local/theirs", 20, features, root=tmp_path / "theirs", use_videos=False, robot_type="arm"
    )
    for episode in episodes:
        columns = episode.columns()
        for t in range(len(episode)):
            dataset.add_frame({name: columns[name][t] for name in features} | {"task": episode.task})
        dataset.save_episode()
    dataset.finalize()
    reader = LeRobotReader(tmp_path / "theirs")
    assert reader.embodiments == [{"name": "arm"}]
    for actual, expected in zip(reader.episodes(), episodes, strict=True):
        assert (actual.task, actual.fps) == (expected.task, 20)
        for name in features:
            np.testing.assert_array_equal(actual.columns()[name], expected.columns()[name], err_msg=name)
