"""Damaged data sets: a clear error or the exact result, never another exception, a hang or a silently wrong frame."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from damage import check_damage, damage, same
from data import drawn
from data.corruption import KINDS
from data.factory import BODIES, make_episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter

RECORDINGS = Path(__file__).parent / "recordings"
EACH = 5 * len(KINDS)
"""Corruptions of each of four data sets: together 200."""


def write_images(root):
    with LeRobotWriter(root, embodiments=BODIES, data_file_mb=0) as writer:
        for seed in range(3):
            writer.add_episode(make_episode(seed, length=5 + seed, size=(8, 8)))


def write_video(root):
    with LeRobotWriter(root, embodiments=BODIES, video=True, video_file_mb=0) as writer:
        for seed in range(3):
            writer.add_episode(make_episode(seed, length=5 + seed, extra={}))


OURS = {"images": write_images, "video": write_video}
THEIRS = ("v2.1-images", "v3.0-video")


def reading(root):
    """Everything that a training would see of a data set."""
    reader = LeRobotReader(root)
    result = {"tasks": reader.tasks, "columns": reader.columns(["action", "observation.state"])}
    for index, episode in enumerate(reader.episodes()):
        result[index] = (episode.columns(), episode.task, episode.fps, episode.is_play, episode.embodiment_index)
    return result


@pytest.mark.parametrize("kind", OURS)
def test_damage_to_our_data_sets_is_an_error_or_harmless(tmp_path, kind):
    OURS[kind](tmp_path / "clean")
    first = EACH * list(OURS).index(kind)
    check_damage(tmp_path / "clean", tmp_path, range(first, first + EACH), KINDS, reading)


def close(expected, found, what):
    """Without checksums a flipped bit may change a value within the tolerance of the statistics, or the pixels of a
    video, which decoders do not check; episodes, order and frames must be right all the same."""
    if expected.keys() != found.keys() or expected["tasks"].keys() != found["tasks"].keys():
        return False
    for index in range(len(drawn.LENGTHS)):
        (columns, *_), (others, *_) = expected[index], found[index]
        for name in ("observation.state", "action"):
            scale = np.ptp(columns[name], axis=0).max()
            if not np.allclose(columns[name].mean(axis=0), others[name].mean(axis=0), atol=2e-3 * scale):
                return False
        for number, camera in enumerate(drawn.CAMERAS):
            images = others.get(f"observation.images.{camera}", [])
            if "bits of" in what or "bytes" in what:
                continue
            if any(drawn.read(image) != (number, index, t) for t, image in enumerate(images)):
                return False
    return True


@pytest.mark.parametrize("name", THEIRS)
def test_damage_to_lerobots_data_sets_is_an_error_or_small(tmp_path, name):
    """These have no checksums: what their files and statistics cannot tell stays unseen."""
    first = EACH * (2 + THEIRS.index(name))
    check_damage(RECORDINGS / name, tmp_path, range(first, first + EACH), KINDS, reading, right=close)


def test_lenient_reading_never_raises_anything_else(tmp_path):
    write_images(tmp_path / "clean")
    whole = reading(tmp_path / "clean")
    for seed in range(0, 4 * EACH, 7):
        root = shutil.copytree(tmp_path / "clean", tmp_path / str(seed))
        damage(KINDS, root, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                reader = LeRobotReader(root, strict=False)
            except (ValueError, FileNotFoundError):
                continue
        assert len(reader) + len(reader.problems) == 3
        for meta, episode in zip(reader.metadata, reader.episodes(), strict=True):
            assert same(whole[meta.index][0], episode.columns()), f"seed {seed}"
