"""Quantiles of a stream in bounded memory."""

import numpy as np
from jaxtyping import Float

EXACT_FRAMES = 1 << 20
"""Frames that are kept as they are, 4 bytes a number."""
CENTROIDS = 5000
"""Into how many centroids each dimension's frames are merged beyond that."""


class QuantileSketch:
    """Quantiles of each dimension of a stream: exact up to `exact_frames`, a t-digest of it beyond.

    A t-digest (Dunning and Ertl 2019, arXiv 1902.04023) merges neighbours in the sorted stream into centroids (mean and
    weight). With q the share of the stream below a centroid, none spans more than one unit of

        k(q) = centroids * (asin(2 q - 1) / pi + 1 / 2),

    so a centroid holds at most a share `pi / centroids * sqrt(q (1 - q))`: at q = 1 %, one in 16,000 frames. Quantiles
    of parts cannot be averaged into those of the whole; centroids can be merged.
    """

    def __init__(self, exact_frames: int = EXACT_FRAMES, centroids: int = CENTROIDS) -> None:
        self.count = 0
        self._exact_frames, self._centroids = exact_frames, centroids
        self._merged: list[tuple[np.ndarray, np.ndarray]] = []
        self._recent: list[np.ndarray] = []
        self._held = 0

    @property
    def exact(self) -> bool:
        """Whether nothing has been merged yet."""
        return not self._merged

    def update(self, values: Float[np.ndarray, "N D"]) -> None:
        """Adds N frames, kept in float32; every block must have the same D."""
        for start in range(0, len(values), self._exact_frames):
            block = values[start : start + self._exact_frames].astype(np.float32)
            if self._held + len(block) > self._exact_frames:
                self._merge()
            self._recent.append(block)
            self._held += len(block)
        self.count += len(values)

    def quantile(self, *levels: float) -> list[Float[np.ndarray, " D"]]:
        """Quantiles of all frames so far, linearly interpolated between ranks (numpy's default).

        Raises:
            ValueError: nothing has been added, or a level is not within [0, 1].
        """
        if self.count == 0 or not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"no quantiles {levels} of {self.count} frames: levels are in [0, 1], frames are needed")
        columns = []
        for values, weights in self._sorted():
            middle = np.cumsum(weights) - (weights + 1) / 2  # rank of each centroid's middle; of a lone frame, its own
            columns.append(np.interp(np.multiply(levels, self.count - 1), middle, values))
        return list(np.stack(columns, axis=1))

    def _sorted(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Values and weights of each dimension in ascending order."""
        recent = np.concatenate(self._recent).astype(np.float64)
        merged = self._merged or [(np.zeros(0), np.zeros(0))] * recent.shape[1]
        result = []
        for column, (means, weights) in zip(recent.T, merged, strict=True):
            values = np.concatenate([means, column])
            order = np.argsort(values, kind="stable")
            result.append((values[order], np.concatenate([weights, np.ones(len(column))])[order]))
        return result

    def _merge(self) -> None:
        if self._recent:
            self._merged = [_centroids(values, weights, self._centroids) for values, weights in self._sorted()]
        self._recent, self._held = [], 0


def _centroids(
    values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], count: int
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Ascending values, merged where their middles lie within the same unit of k."""
    ends = np.cumsum(weights)
    share = (ends - weights / 2) / ends[-1]
    unit = np.floor(count * (np.arcsin(2 * share - 1) / np.pi + 0.5))
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    total = np.add.reduceat(weights, starts)
    return np.add.reduceat(values * weights, starts) / total, total
