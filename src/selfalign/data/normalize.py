"""Statistics of states and actions, and the normalisation that a model sees.

Each embodiment is normalised with its own statistics (for a new body: those of its play). They travel as JSON with
checkpoints and context files.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mode = Literal["zscore", "quantile"]
Array = TypeVar("Array", np.ndarray, Tensor)

NEAR_CONSTANT = 1e-5
"""A dimension that spreads by less than this (times its magnitude, at least 1) is not divided by its spread."""


@dataclass(frozen=True, eq=False)
class FieldStats:
    """Statistics of one field over `count` frames; every array has shape [D], in the field's own units."""

    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]
    """Population standard deviation (divided by N)."""
    min: Float[np.ndarray, " D"]
    max: Float[np.ndarray, " D"]
    q01: Float[np.ndarray, " D"]
    q99: Float[np.ndarray, " D"]
    count: int

    @classmethod
    def from_array(cls, values: Float[np.ndarray, "N D"]) -> Self:
        """Statistics of all frames at once."""
        running = RunningStats()
        running.update(values)
        return cls(**running.finish().__dict__)

    @property
    def dim(self) -> int:
        return len(self.mean)

    def near_constant(self, mode: Mode = "zscore") -> Bool[np.ndarray, " D"]:
        """True where a dimension spreads too little to be divided by its spread."""
        spread = self.std if mode == "zscore" else self.q99 - self.q01
        return spread <= NEAR_CONSTANT * np.maximum(1.0, np.abs(self.mean))

    def affine(self, mode: Mode) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
        """(center, scale) such that `(x - center) / scale` is normalised; near-constant dimensions get scale 1."""
        if mode == "zscore":
            center, scale = self.mean, self.std
        else:  # q01 -> -1, q99 -> +1
            center, scale = (self.q01 + self.q99) / 2, (self.q99 - self.q01) / 2
        return center, np.where(self.near_constant(mode), 1.0, scale)

    def to_dict(self) -> dict[str, Any]:
        names = ("mean", "std", "min", "max", "q01", "q99")
        return {**{name: getattr(self, name).tolist() for name in names}, "count": self.count}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in data.items() if name != "count"}
        return cls(**arrays, count=int(data["count"]))


class RunningStats:
    """Exact statistics of a stream, given in blocks of frames.

    Mean and variance are merged block by block (Chan et al. 1979: no cancellation at large means). Quantiles of a
    stream cannot be exact without its values, so those are kept in float32: 4 bytes a number.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._m2 = self._min = self._max = np.zeros(0)
        self._values: list[np.ndarray] = []

    def update(self, values: Float[np.ndarray, "N D"]) -> None:
        """Adds N frames.

        Raises:
            ValueError: not [N, D], D differs from the blocks before, or a value is NaN or infinite.
        """
        if values.ndim != 2 or (self.count and values.shape[1] != len(self._mean)):
            expected = f"[N, {len(self._mean)}]" if self.count else "[N, D]"
            raise ValueError(f"statistics need frames of shape {expected}, got {list(values.shape)}")
        if len(values) == 0:
            return
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"statistics of NaN or infinity: frame {self.count + row}, dimension {column}")
        block = values.astype(np.float64)
        n, mean = len(block), block.mean(axis=0)
        m2 = ((block - mean) ** 2).sum(axis=0)
        if self.count == 0:
            self._mean, self._m2, self._min, self._max = mean, m2, block.min(axis=0), block.max(axis=0)
        else:
            delta, total = mean - self._mean, self.count + n
            self._mean = self._mean + delta * n / total
            self._m2 = self._m2 + m2 + delta**2 * self.count * n / total
            self._min, self._max = np.minimum(self._min, block.min(axis=0)), np.maximum(self._max, block.max(axis=0))
        self.count += n
        self._values.append(values.astype(np.float32))

    def quantile(self, *q: float) -> list[Float[np.ndarray, " D"]]:
        """Quantiles of all values so far, linearly interpolated."""
        return list(np.quantile(np.concatenate(self._values), q, axis=0).astype(np.float64))

    def finish(self) -> FieldStats:
        """Statistics of all blocks so far.

        Raises:
            ValueError: nothing has been added.
        """
        if self.count == 0:
            raise ValueError("statistics of nothing: no frame has been added")
        q01, q99 = self.quantile(0.01, 0.99)
        std = np.sqrt(self._m2 / self.count)
        return FieldStats(self._mean, std, self._min, self._max, q01, q99, self.count)


@dataclass(frozen=True, eq=False)
class NormStats:
    """What a robot's states and actions are normalised with.

    `zscore` gives mean 0 and standard deviation 1, `quantile` maps the 1 % and 99 % quantiles to -1 and +1. All four
    methods take numpy arrays or tensors [..., D] and return the same kind and float type.
    """

    state: FieldStats
    action: FieldStats
    mode: Mode = "zscore"
    _cache: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_arrays(
        cls, state: Float[np.ndarray, "N S"], action: Float[np.ndarray, "N A"], mode: Mode = "zscore"
    ) -> Self:
        """Statistics of one embodiment's frames; warns of near-constant dimensions by name."""
        stats = cls(FieldStats.from_array(state), FieldStats.from_array(action), mode)
        stats.warn_near_constant()
        return stats

    @property
    def state_dim(self) -> int:
        return self.state.dim

    @property
    def action_dim(self) -> int:
        return self.action.dim

    def warn_near_constant(self) -> list[str]:
        """Names the near-constant dimensions (and warns if there are any)."""
        names = [
            f"{name}[{i}] (always about {stats.mean[i]:.4g})"
            for name, stats in (("state", self.state), ("action", self.action))
            for i in np.flatnonzero(stats.near_constant(self.mode))
        ]
        if names:
            warnings.warn(
                f"near-constant dimensions are centred but not scaled: {', '.join(names)}. "
                "If the robot can move them, record data in which it does.",
                stacklevel=3,
            )
        return names

    def normalize_state(self, values: Array) -> Array:
        """Robot units -> normalised."""
        return self._normalize("state", values)

    def unnormalize_state(self, values: Array) -> Array:
        """Normalised -> robot units."""
        return self._unnormalize("state", values)

    def normalize_action(self, values: Array) -> Array:
        """Robot units -> normalised."""
        return self._normalize("action", values)

    def unnormalize_action(self, values: Array) -> Array:
        """Normalised -> robot units."""
        return self._unnormalize("action", values)

    def _normalize(self, name: str, values: Array) -> Array:
        center, scale = self._affine(name, values)
        return (values - center) / scale  # type: ignore[return-value]

    def _unnormalize(self, name: str, values: Array) -> Array:
        center, scale = self._affine(name, values)
        return values * scale + center  # type: ignore[return-value]

    def _affine(self, name: str, values: Array) -> tuple[Array, Array]:
        if name not in self._cache:
            self._cache[name] = getattr(self, name).affine(self.mode)
        center, scale = self._cache[name]
        if values.shape[-1] != len(center):
            raise ValueError(
                f"the statistics are of {len(center)} {name} dimensions, the array has shape {list(values.shape)}"
            )
        if isinstance(values, Tensor):
            options = {"dtype": values.dtype, "device": values.device}
            return torch.as_tensor(center, **options), torch.as_tensor(scale, **options)
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
        return center.astype(dtype), scale.astype(dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"state": self.state.to_dict(), "action": self.action.to_dict(), "mode": self.mode}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(FieldStats.from_dict(data["state"]), FieldStats.from_dict(data["action"]), data["mode"])
