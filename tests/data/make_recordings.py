"""Makes `tests/data/recordings` with the `lerobot` package, in an environment of its own. From the repository's root:

    pip install lerobot==0.3.3   # writes v2.1
    PYTHONPATH=tests python tests/data/make_recordings.py tests/data/recordings
    pip install lerobot==0.4.4   # writes v3.0
    PYTHONPATH=tests python tests/data/make_recordings.py tests/data/recordings

Each run makes two small data sets, one of images and one of videos, in the version that its `lerobot` writes.
"""

import shutil
import sys
from pathlib import Path

import lerobot
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

from data.drawn import CAMERAS, FPS, LENGTHS, SIZE, draw, numbers, task

NUMBERS = ("observation.state", "action", "reward")


def make(root: Path, videos: bool) -> None:
    cameras = CAMERAS if videos else CAMERAS[:1]
    features = {
        f"observation.images.{camera}": {
            "dtype": "video" if videos else "image",
            "shape": (*SIZE, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in cameras
    }
    features |= {name: {"dtype": "float32", "shape": numbers(0, name).shape[1:], "names": None} for name in NUMBERS}
    dataset = LeRobotDataset.create("local/recording", FPS, features, root=root, robot_type="drawn", use_videos=videos)
    # Several files for the few frames; LeRobot's own sizes are 100 and 200 MB.
    if CODEBASE_VERSION == "v3.0":
        dataset.meta.info |= {"data_files_size_in_mb": 0.006, "video_files_size_in_mb": 0.0035}
    for episode, length in enumerate(LENGTHS):
        values = {name: numbers(episode, name) for name in NUMBERS}
        for t in range(length):
            frame = {f"observation.images.{camera}": draw(i, episode, t) for i, camera in enumerate(cameras)}
            frame |= {name: array[t] for name, array in values.items()}
            if CODEBASE_VERSION == "v3.0":
                dataset.add_frame(frame | {"task": task(episode)})
            else:
                dataset.add_frame(frame, task=task(episode))
        dataset.save_episode()
    if CODEBASE_VERSION == "v3.0":
        dataset.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)


if __name__ == "__main__":
    for kind in ("video", "images"):
        root = Path(sys.argv[1]) / f"{CODEBASE_VERSION}-{kind}"
        shutil.rmtree(root, ignore_errors=True)
        make(root, videos=kind == "video")
        print(root, "with lerobot", lerobot.__version__)
