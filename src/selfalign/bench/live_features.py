"""Stored features of play that was recorded just now: what pretraining was told by, computed of new pictures.

A checkpoint that knows next observations by the features of another extractor (`selfalign features`) can only be
aligned to play that carries such features.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from selfalign.data.episodes import Episode
from selfalign.data.extractors import FeatureExtractor, Projection, TimmFeatures
from selfalign.data.features import PREFIX, FeatureStore
from selfalign.data.play import Play

BATCH = 64
"""Frames that the extractor reads at once."""


@dataclass(frozen=True, eq=False)
class LiveFeatures:
    """An extractor and what brings its features to the model's size."""

    name: str
    """Of the stored features that these are like."""
    cameras: tuple[str, ...]
    extractor: FeatureExtractor
    projection: Projection

    @classmethod
    def like(cls, store: str | Path, weights: str | Path) -> Self:
        """Those of a store, whose name says which model of timm made it.

        Args:
            store: folder of the features that the checkpoint was pretrained with.
            weights: file with the extractor's weights.

        Raises:
            FileNotFoundError: no features or no weights there.
            ValueError: features that no model of timm has made, or weights of another one.
            ImportError: timm is not installed.
        """
        stored = FeatureStore.open(store)
        told = stored.name.rsplit("-", 4)
        if stored.projection is None or len(told) != 5:
            raise ValueError(f"{store} was made by {stored.name}, which is no model of timm with components")
        extractor = TimmFeatures(told[0], weights, grid=int(told[2]), image_size=int(told[1]))
        if f"{extractor.digest}-{stored.projection.digest}" != stored.name:
            raise ValueError(f"{weights} are other weights than those that made {store}; give the same file")
        return cls(stored.name, stored.cameras, extractor, stored.projection)

    def attach(self, play: Play) -> Play:
        """The play, its episodes with features of every frame."""
        return replace(play, episodes=tuple(map(self._attached, play.episodes)), features=self.name)

    def _attached(self, episode: Episode) -> Episode:
        columns = {PREFIX + camera: self._features(episode.images[camera]) for camera in self.cameras}
        return replace(episode, extra={**episode.extra, **columns})

    def _features(self, frames: np.ndarray) -> np.ndarray:
        parts = np.array_split(frames, -(-len(frames) // BATCH))
        return np.concatenate([self.projection(self.extractor(part)) for part in parts])
