"""Statistics of states and actions, and the normalisation that a model sees.

Each embodiment is normalised with its own statistics (for a new body: those of its play). They travel as JSON with
checkpoints and context files. openpi's `norm_stats.json` and a LeRobot data set's `meta/stats.json` are read and
written too.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfalign.data.quantiles import QuantileSketch
from selfalign.model.files import write_atomically
from selfalign.model.weights import read_json, write_json

Mode = Literal["zscore", "quantile"]
Array = TypeVar("Array", np.ndarray, Tensor)

NEAR_CONSTANT = 1e-5
"""A dimension that spreads by less than this (times its magnitude, at least 1) is not divided by its spread."""

OPENPI_EPS = 1e-6
"""What openpi adds to each spread before it divides by it."""

LEVELS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
"""The quantiles of `FieldStats`, which are LeRobot's."""

LEROBOT_STATS = "meta/stats.json"


@dataclass(frozen=True, eq=False)
class FieldStats:
    """Statistics of one field over `count` frames; every array has shape [D], in the field's own units.

    Statistics that came from elsewhere may lack some: NaN where the extremes or a quantile are not known, count 0.
    """

    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]
    """Population standard deviation (divided by N)."""
    min: Float[np.ndarray, " D"]
    max: Float[np.ndarray, " D"]
    q01: Float[np.ndarray, " D"]
    """1 % of the frames are below; the other quantiles likewise."""
    q10: Float[np.ndarray, " D"]
    q50: Float[np.ndarray, " D"]
    q90: Float[np.ndarray, " D"]
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

    def affine(self, mode: Mode, eps: float = 0.0) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
        """(center, scale) such that `(x - center) / scale` is normalised.

        `eps` is added to the spread. Without it, near-constant dimensions get scale 1.
        """
        if mode == "zscore":
            center, scale = self.mean, self.std + eps
        else:  # q01 -> -1, q99 -> +1
            center, scale = (self.q01 + self.q99 + eps) / 2, (self.q99 - self.q01 + eps) / 2
        return center, scale if eps else np.where(self.near_constant(mode), 1.0, scale)

    def first(self, dim: int) -> Self:
        """The statistics of the first `dim` dimensions."""
        arrays = {f.name: getattr(self, f.name)[:dim] for f in fields(self) if f.name != "count"}
        return type(self)(**arrays, count=self.count)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; None for what is not known."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "count"}
        known = {name: None if np.isnan(array).all() else array.tolist() for name, array in arrays.items()}
        return {**known, "count": self.count}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what is missing beside `mean` and `std` is not known."""
        mean, std = (np.asarray(data[name], dtype=np.float64) for name in ("mean", "std"))
        optional = {
            name: np.full_like(mean, np.nan) if data.get(name) is None else np.asarray(data[name], dtype=np.float64)
            for name in ("min", "max", *LEVELS)
        }
        return cls(mean, std, **optional, count=int(data.get("count", 0)))


class RunningStats:
    """Statistics of a stream, given in blocks of frames.

    Mean and deviation are exact, merged block by block (Chan et al. 1979: no cancellation at large means), and so are
    the extremes. Quantiles are exact up to a million frames and a t-digest's beyond; see `QuantileSketch`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._m2 = self._min = self._max = np.zeros(0)
        self._sketch = QuantileSketch()

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
        self._sketch.update(values)

    def quantile(self, *levels: float) -> list[Float[np.ndarray, " D"]]:
        """Quantiles of all values so far, linearly interpolated."""
        return self._sketch.quantile(*levels)

    def finish(self) -> FieldStats:
        """Statistics of all blocks so far.

        Raises:
            ValueError: nothing has been added.
        """
        if self.count == 0:
            raise ValueError("statistics of nothing: no frame has been added")
        quantiles = self.quantile(*LEVELS.values())
        std = np.sqrt(self._m2 / self.count)
        return FieldStats(self._mean, std, self._min, self._max, *quantiles, count=self.count)


@dataclass(frozen=True, eq=False)
class NormStats:
    """What a robot's states and actions are normalised with.

    `zscore` gives mean 0 and standard deviation 1, `quantile` maps the 1 % and 99 % quantiles to -1 and +1. All four
    methods take numpy arrays or tensors [..., D] and return the same kind and float type.

    Raises:
        ValueError: `clip` is not positive.
    """

    state: FieldStats
    action: FieldStats
    mode: Mode = "zscore"
    eps: float = 0.0
    """Added to each spread, as openpi does; 0: near-constant dimensions are centred but not scaled."""
    clip: float | None = None
    """Normalised numbers are kept within [-clip, clip], on the way in and on the way out; None: they are not. What it
    changes cannot be undone."""
    displacements: tuple[bool, ...] | None = None
    """Which numbers of an action are displacements, which can be larger for more speed; the others are places, or
    grippers. None: not known."""
    _cache: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive (None does not clip), got {self.clip}")
        if self.displacements is not None and len(self.displacements) != self.action_dim:
            raise ValueError(
                f"{len(self.displacements)} numbers are said to be displacements or not, actions have {self.action_dim}"
            )

    @classmethod
    def from_arrays(
        cls,
        state: Float[np.ndarray, "N S"],
        action: Float[np.ndarray, "N A"],
        mode: Mode = "zscore",
        clip: float | None = None,
    ) -> Self:
        """Statistics of one embodiment's frames; warns of near-constant dimensions by name."""
        stats = cls(FieldStats.from_array(state), FieldStats.from_array(action), mode, clip=clip)
        stats.warn_near_constant()
        return stats

    @property
    def state_dim(self) -> int:
        return self.state.dim

    @property
    def action_dim(self) -> int:
        return self.action.dim

    def warn_near_constant(self, state_names: Sequence[str] = (), action_names: Sequence[str] = ()) -> list[str]:
        """Names the near-constant dimensions (and warns if there are any).

        Args:
            state_names: of the dimensions of the state, where they have names; so action_names.
        """
        found = []
        for field_name, stats, told in (("state", self.state, state_names), ("action", self.action, action_names)):
            for i in np.flatnonzero(stats.near_constant(self.mode)):
                name = f"{field_name}[{i}]" + (f" {told[i]}" if len(told) == stats.dim else "")
                found.append(f"{name} (always about {stats.mean[i]:.4g})")
        if found:
            what = "divided by their spread + eps, which blows them up" if self.eps else "centred but not scaled"
            warnings.warn(
                f"near-constant dimensions are {what}: {', '.join(found)}. "
                "If the robot can move them, record data in which it does.",
                stacklevel=3,
            )
        return found

    def normalize_state(self, values: Array) -> Array:
        """Robot units -> normalised."""
        return self._normalize("state", values)

    def unnormalize_state(self, values: Array) -> Array:
        """Normalised -> robot units."""
        return self._unnormalize("state", values)

    def normalize_action(self, values: Array) -> Array:
        """Robot units -> normalised."""
        return self._normalize("action", values)

    def unnormalize_action(self, values: Array, speed: float = 1.0) -> Array:
        """Normalised -> robot units, displacements multiplied by a speed."""
        actions = self._unnormalize("action", values)
        if speed == 1.0 or self.displacements is None:
            return actions
        return actions * _like(np.where(self.displacements, speed, 1.0), actions)  # type: ignore[return-value]

    def _normalize(self, name: str, values: Array) -> Array:
        center, scale = self._affine(name, values)
        return self._clip((values - center) / scale)  # type: ignore[arg-type, return-value]

    def _unnormalize(self, name: str, values: Array) -> Array:
        center, scale = self._affine(name, values)
        return self._clip(values) * scale + center  # type: ignore[return-value]

    def _clip(self, values: Array) -> Array:
        return values if self.clip is None else values.clip(-self.clip, self.clip)  # type: ignore[return-value]

    def _affine(self, name: str, values: Array) -> tuple[Array, Array]:
        if name not in self._cache:
            self._cache[name] = getattr(self, name).affine(self.mode, self.eps)
        center, scale = self._cache[name]
        if values.shape[-1] != len(center):
            raise ValueError(
                f"the statistics are of {len(center)} {name} dimensions, the array has shape {list(values.shape)}"
            )
        return _like(center, values), _like(scale, values)

    def to_dict(self) -> dict[str, Any]:
        data = {"state": self.state.to_dict(), "action": self.action.to_dict(), "mode": self.mode}
        unusual = {name: getattr(self, name) for name in ("eps", "clip") if getattr(self, name)}
        known = {} if self.displacements is None else {"displacements": list(self.displacements)}
        return {**data, **unusual, **known}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        state, action = FieldStats.from_dict(data["state"]), FieldStats.from_dict(data["action"])
        moved = data.get("displacements")
        known = None if moved is None else tuple(map(bool, moved))
        return cls(state, action, data["mode"], data.get("eps", 0.0), data.get("clip"), known)

    # ---- openpi's file ---------------------------------------------------------------------------------------------

    @classmethod
    def read_openpi(
        cls, path: str | Path, mode: Mode, *, state_dim: int | None = None, action_dim: int | None = None
    ) -> Self:
        """Reads openpi's statistics, and normalises as openpi does: 1e-6 is added to every spread.

        Args:
            path: `norm_stats.json`, or the directory that holds it (`assets/<asset_id>` of a checkpoint).
            mode: what the checkpoint was trained with: "zscore" for pi0, "quantile" for pi0.5.
            state_dim: the robot's own dimensions where the file's statistics are of padded ones; so action_dim.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, fewer dimensions than asked for, or no quantiles where they are needed.
        """
        path = Path(path)
        path = path / "norm_stats.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no openpi statistics at {path}; a checkpoint has them in assets/<asset_id>/")
        try:
            data = json.loads(path.read_text())["norm_stats"]
            state, action = FieldStats.from_dict(data["state"]), FieldStats.from_dict(data["actions"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not openpi's norm_stats.json: {error!r}") from error
        for name, stats, dim in (("state", state, state_dim), ("actions", action, action_dim)):
            check_field(f"{path}: {name}", stats, mode, dim)
        return cls(state.first(state_dim or state.dim), action.first(action_dim or action.dim), mode, OPENPI_EPS)

    def write_openpi(self, path: str | Path) -> Path:
        """Writes `norm_stats.json` as openpi does; `path` is the file or its directory. Returns the file."""
        path = Path(path)
        path = path / "norm_stats.json" if path.suffix != ".json" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        stats = {name: stats.to_dict() for name, stats in (("state", self.state), ("actions", self.action))}
        kept = {name: {key: values[key] for key in ("mean", "std", "q01", "q99")} for name, values in stats.items()}
        text = json.dumps({"norm_stats": kept}, indent=2)
        write_atomically(path, lambda target: target.write_text(text))
        return path

    # ---- LeRobot's file --------------------------------------------------------------------------------------------

    @classmethod
    def read_lerobot(cls, path: str | Path, mode: Mode = "zscore") -> Self:
        """Reads the statistics of a LeRobot data set; near-constant dimensions are guarded and named.

        LeRobot joins the quantiles of episodes to bounds of the whole data set's, which are wider than its quantiles;
        `selfalign stats` computes true ones.

        Args:
            path: the data set, or its `meta/stats.json`.
            mode: "quantile" wants q01 and q99, which older data sets lack.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or no quantiles where they are needed.
        """
        path = _lerobot_file(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no LeRobot statistics at {path} (data sets of version 2.1 keep them by episode): compute them with "
                "`selfalign stats`"
            )
        data = read_json(path)
        try:
            state, action = (FieldStats.from_dict(_flat(data[key])) for key in ("observation.state", "action"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no statistics of observation.state and action: {error!r}") from error
        for name, stats in (("observation.state", state), ("action", action)):
            check_field(f"{path}: {name}", stats, mode)
        result = cls(state, action, mode)
        result.warn_near_constant()
        return result

    def write_lerobot(self, path: str | Path) -> Path:
        """Writes the state's and the action's entries of `meta/stats.json`; those of other columns stay.

        Args:
            path: the data set, or its `meta/stats.json`. Returns the file.
        """
        path = _lerobot_file(path)
        data = read_json(path) if path.is_file() else {}
        for key, stats in (("observation.state", self.state), ("action", self.action)):
            known = {name: value for name, value in stats.to_dict().items() if value is not None}
            data[key] = {**known, "count": [stats.count]}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, data)
        return path


def _like(numbers: np.ndarray, values: Array) -> Array:
    """Numbers of the kind, float type and device of values that they are computed with."""
    if isinstance(values, Tensor):
        return torch.as_tensor(numbers, dtype=values.dtype, device=values.device)
    return numbers.astype(values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64)


def _lerobot_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / LEROBOT_STATS


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """LeRobot's lists as vectors, its count as a number."""
    values = {name: np.ravel(value) for name, value in entry.items()}
    return {**values, "count": values["count"][0] if "count" in values else 0}


def check_field(name: str, stats: FieldStats, mode: Mode, dim: int | None = None) -> None:
    """Raises `ValueError` unless statistics from a file can normalise `dim` dimensions (None: all) by `mode`."""
    needed = (stats.mean, stats.std) if mode == "zscore" else (stats.q01, stats.q99)
    if mode == "quantile" and any(np.isnan(array).all() for array in needed):
        raise ValueError(f"{name} has no quantiles; compute them again, or read the file with mode='zscore'")
    shapes = {array.shape for array in (stats.mean, stats.std, stats.q01, stats.q99)}
    if len(shapes) > 1 or stats.mean.ndim != 1 or not all(np.isfinite(array).all() for array in needed):
        raise ValueError(f"{name} must be finite lists of one length, got shapes {sorted(shapes)}")
    if dim is not None and dim > stats.dim:
        raise ValueError(f"{name} has {stats.dim} dimensions, {dim} were asked for")
