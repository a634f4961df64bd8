"""Snapshots on disk."""

import numpy as np
import pytest

from selfalign.data.snapshots import Snapshots


def test_what_is_saved_is_read(tmp_path):
    rng = np.random.default_rng(0)
    images, points = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8), rng.normal(size=(5, 2, 4)).astype(np.float32)
    Snapshots(images, points).save(tmp_path / "shots")
    read = Snapshots.open(tmp_path / "shots", image_size=8)
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.points, points)
    assert isinstance(read.images, np.memmap)


def test_what_does_not_belong_together_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((5, 8, 8, 3), np.uint8))
    np.save(tmp_path / "points.npy", np.zeros((4, 2, 4), np.float32))
    with pytest.raises(ValueError, match="do not belong together"):
        Snapshots.open(tmp_path)


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Snapshots.open(tmp_path / "nowhere")
