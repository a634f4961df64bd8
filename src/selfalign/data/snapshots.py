"""Labelled pictures: frames of no episode, with the places of what is in them. A vision tower learns on them.

On disk a folder with `images.npy` [N, S, S, 3] uint8, `points.npy` [N, K, 3 or 4] float32 and `plan.json`, which says
what they are.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Pictures and the image points in them, memory-mapped."""

    images: UInt8[np.ndarray, "N S S 3"]
    points: Float[np.ndarray, "N K columns"]
    """(u, v, visible) or (u, v, visible, depth): u, v in [0, 1] from the top left, the depth in metres."""

    @classmethod
    def open(cls, path: str | Path, image_size: int | None = None) -> Self:
        """Opens a folder that `selfalign snapshots` has recorded.

        Args:
            path: the folder.
            image_size: what the pictures must measure, pixels.

        Raises:
            FileNotFoundError: there are no snapshots, or their recording has not ended.
            ValueError: pictures and points do not belong together, or have another size.
        """
        path = Path(path)
        files = path / "images.npy", path / "points.npy"
        if not all(file.is_file() for file in files):
            hint = "its recording has not ended: run the same command again" if path.is_dir() else "no such folder"
            raise FileNotFoundError(f"no snapshots (images.npy and points.npy) in {path}: {hint}")
        images, points = (np.load(file, mmap_mode="r") for file in files)
        if images.ndim != 4 or images.shape[1:] != (images.shape[1], images.shape[1], 3) or len(points) != len(images):
            raise ValueError(f"{path}: images {images.shape} and points {points.shape} do not belong together")
        if image_size is not None and images.shape[1] != image_size:
            raise ValueError(f"{path} has pictures of {images.shape[1]} px, the model reads {image_size}; record again")
        return cls(images, points)

    @property
    def fingerprint(self) -> str:
        """Of what is where in how many pictures: other recordings have another."""
        told = str(self.images.shape).encode() + np.ascontiguousarray(self.points).tobytes()
        return hashlib.sha256(told).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Writes them to a folder; `open` sees all or nothing."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, values in (("points", self.points), ("images", self.images)):
            partial = path / f".{name}.partial.npy"
            np.save(partial, values)
            partial.replace(path / f"{name}.npy")
