"""Features of next observations, made once by a frozen extractor and stored beside the data.

By default a model is told next observations by its own vision tower. Another extractor, such as DINOv2, runs once over
all frames (`data.feature_writer`), its features are brought to the size that the model takes and kept as a
`FeatureStore`; pretraining and aligning read that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import Episode
from selfalign.data.extractors import Projection
from selfalign.model.policy import VLA
from selfalign.model.weights import read_json

PREFIX = "features."
"""Columns of episodes with stored features are called `features.<camera>`."""
STORE_FORMAT = "selfalign-features-1"
META, PROJECTION = "features.json", "projection.npz"


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features of every frame of a data set: a folder of arrays."""

    root: Path
    name: str
    """What made them: extractor and projection. Features of other names mean something else."""
    fingerprint: str
    """Of the data set (`SourceData.fingerprint`)."""
    cameras: tuple[str, ...]
    lengths: tuple[int, ...]
    """Frames of each episode."""

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """Opens what `selfalign features` wrote.

        Raises:
            FileNotFoundError: nothing there, or a file is missing.
            ValueError: a damaged file.
        """
        root = Path(root)
        if not (root / META).is_file():
            raise FileNotFoundError(f"{root} holds no features: it has no {META}; `selfalign features` makes them")
        told = read_json(root / META)
        try:
            if told["format"] != STORE_FORMAT:
                raise ValueError(f"its format is {told['format']!r}")
            store = cls(
                root, told["name"], told["fingerprint"], tuple(told["cameras"]), tuple(map(int, told["lengths"]))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{root / META} is damaged or of another version: {error!r}") from error
        for camera in store.cameras:
            frames = len(store.features(camera))
            if frames != sum(store.lengths):
                raise ValueError(f"{root} has {frames} frames of {camera}, {META} says {sum(store.lengths)}")
        return store

    def features(self, camera: str) -> Float[np.ndarray, "N n F"]:
        """Of all frames, mapped from the file."""
        path = self.root / f"{camera}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; compute the features again")
        try:
            return np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut off: {error}") from error

    @property
    def projection(self) -> Projection | None:
        """The components, where there are some."""
        path = self.root / PROJECTION
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            return Projection(arrays["mean"], arrays["components"])

    def attach(self, index: int, episode: Episode) -> Episode:
        """Episode `index` of the data set, with its features as columns."""
        start = sum(self.lengths[:index])
        rows = slice(start, start + self.lengths[index])
        own = {PREFIX + camera: np.asarray(self.features(camera)[rows]) for camera in self.cameras}
        return replace(episode, extra={**episode.extra, **own})

    def check(self, fingerprint: str, lengths: list[int]) -> None:
        """Raises `ValueError` unless the features are those of this data set."""
        if self.fingerprint != fingerprint or list(self.lengths) != lengths:
            raise ValueError(
                f"{self.root} holds features of another data set ({self.fingerprint}, not {fingerprint}), or of "
                "cameras that were named otherwise: name them as then (--cameras), or compute features of this one "
                "with `selfalign features`"
            )


def stored_features(columns: Mapping[str, Any], cameras: tuple[str, ...]) -> np.ndarray | None:
    """Stored features [T, cameras * n, F] of a model's cameras, side by side; None where there are none.

    Raises:
        ValueError: of some cameras only.
    """
    found = [PREFIX + camera for camera in cameras if PREFIX + camera in columns]
    if not found:
        return None
    if len(found) < len(cameras):
        missing = ", ".join(camera for camera in cameras if PREFIX + camera not in found)
        raise ValueError(f"there are stored features of {', '.join(found)}, but none of the camera {missing}")
    return np.concatenate([np.asarray(columns[name]) for name in found], axis=1)


def check_size(found: tuple[int, ...], model: VLA) -> None:
    """Raises `ValueError` unless features [cameras * n, F] are of the size that the model takes."""
    wanted = tuple(model.feature_mean.shape)
    if found != wanted:
        raise ValueError(
            f"the stored features are {list(found)} an observation, the model takes {list(wanted)}: compute them with "
            "`selfalign features --checkpoint` of a model of its kind"
        )
