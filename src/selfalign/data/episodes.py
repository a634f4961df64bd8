"""One trajectory of one robot, in robot units and LeRobot's column names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

import numpy as np
from jaxtyping import Float, Int, UInt8

IMAGE_PREFIX = "observation.images."
"""Camera columns are named `observation.images.<camera>` on disk and in raw observations."""

_EMPTY: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Pairs:
    """Where N transitions (o_t, a_{t:t+H}, o_{t+H}) of an episode stand in its columns."""

    now: Int[np.ndarray, " N"]
    """Rows of o_t in pictures and states."""
    later: Int[np.ndarray, " N"]
    """Rows of o_{t+H}."""
    step: Int[np.ndarray, " N"]
    """Rows of a_t in the actions."""

    def __len__(self) -> int:
        return len(self.now)


@dataclass(frozen=True, eq=False)
class Episode:
    """T consecutive frames of one embodiment: what it saw, where it was, and what it did then.

    Raises:
        ValueError: a column whose length is not T, an image that is not uint8 [T, H, W, 3], a state or action that
            is not [T, D], or an episode without frames. NaN is not an error here (a recording may hold it; see
            `selfalign.data.play.Play`, which refuses it).
    """

    images: Mapping[str, UInt8[np.ndarray, "T _ _ 3"]]
    """Per camera (bare name, without `observation.images.`)."""
    state: Float[np.ndarray, "T S"]
    """Proprioception before each action."""
    action: Float[np.ndarray, "T A"]
    """The action taken at each frame."""
    task: str = ""
    """The instruction; empty in play."""
    fps: float = 20.0
    """Control rate, Hz."""
    embodiment_index: int = 0
    """Which robot of the data set (a row of `meta/embodiments.json`)."""
    is_play: bool = False
    """True for motion without a task."""
    extra: Mapping[str, np.ndarray] = field(default_factory=lambda: _EMPTY)
    """Further columns by full name, each [T, ...]."""

    def __post_init__(self) -> None:
        length = len(self.action)
        if length == 0:
            raise ValueError("an episode needs at least one frame, this one has none")
        for name in ("state", "action"):
            value = getattr(self, name)
            if value.ndim != 2:
                raise ValueError(f"episode {name} must have shape [T, D], got {list(value.shape)}")
        for camera, frames in self.images.items():
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
                raise ValueError(
                    f"camera {camera!r} must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}"
                )
        self._check_lengths()

    def _check_lengths(self) -> None:
        for name, value in self.columns().items():
            if len(value) != len(self):
                raise ValueError(f"column {name!r} has {len(value)} frames, the actions have {len(self)}")

    def __len__(self) -> int:
        return len(self.action)

    def columns(self) -> dict[str, np.ndarray]:
        """Every per-frame array by its full column name, images included."""
        images = {IMAGE_PREFIX + camera: frames for camera, frames in self.images.items()}
        return {**images, "observation.state": self.state, "action": self.action, **self.extra}

    def observation(self, index: int) -> dict[str, np.ndarray | str]:
        """Frame `index` as the raw observation that `Policy.act` takes."""
        images = {IMAGE_PREFIX + camera: frames[index] for camera, frames in self.images.items()}
        return {**images, "observation.state": self.state[index], "task": self.task}

    def pairs(self, horizon: int, stride: int = 1) -> Pairs:
        """The transitions over `horizon` steps that lie within the episode; every `stride`-th of them."""
        starts = np.arange(0, len(self) - horizon, stride)
        return Pairs(starts, starts + horizon, starts)

    def part(self, start: int, stop: int | None) -> Self:
        """Frames start to stop; None: to the end."""
        return self._picked(slice(start, stop), slice(start, stop))

    def _picked(self, frames: slice, looks: slice | np.ndarray, **changes: np.ndarray) -> Self:
        """Some frames of the actions and some rows of what was seen."""
        return replace(
            self,
            images={camera: x[looks] for camera, x in self.images.items()},
            state=self.state[looks],
            action=self.action[frames],
            extra={name: x[frames] for name, x in self.extra.items()},
            **changes,
        )


@dataclass(frozen=True, eq=False)
class SparseEpisode(Episode):
    """T actions, and what was seen at M of the moments between them: a robot that looks only when it asks.

    Moment t is before action t, moment T after the last one. As a data set this cannot be written: it has pictures at
    some frames only.

    Raises:
        ValueError: as `Episode`; or moments that do not rise, or lie beyond the actions.
    """

    images: Mapping[str, UInt8[np.ndarray, "M _ _ 3"]]
    state: Float[np.ndarray, "M S"]
    """Proprioception at the moments seen."""
    observed: Int[np.ndarray, " M"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Those moments."""

    def _check_lengths(self) -> None:
        moments = self.observed
        if not len(moments) or (np.diff(moments) <= 0).any() or moments[0] < 0 or moments[-1] > len(self):
            raise ValueError(f"the moments seen must rise from 0 at least to {len(self)} at most, got {moments}")
        seen = len(moments)
        for name, value in self.columns().items():
            expected = len(self) if name == "action" or name in self.extra else seen
            if len(value) != expected:
                raise ValueError(f"column {name!r} has {len(value)} rows, {expected} were expected")

    def pairs(self, horizon: int, stride: int = 1) -> Pairs:
        """Transitions between two moments seen, `horizon` steps apart; every `stride`-th of them."""
        place = np.searchsorted(self.observed, self.observed + horizon)
        found = self.observed[np.minimum(place, len(self.observed) - 1)] == self.observed + horizon
        now = np.flatnonzero(found)[::stride]
        return Pairs(now, place[now], self.observed[now])

    def part(self, start: int, stop: int | None) -> Self:
        """Actions start to stop, and what was seen before each of them (for None: and after the last)."""
        end = len(self) + 1 if stop is None else stop
        looks = np.flatnonzero((self.observed >= start) & (self.observed < end))
        return self._picked(slice(start, stop), looks, observed=self.observed[looks] - start)
