"""One trajectory of one robot, in robot units and LeRobot's column names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, UInt8

IMAGE_PREFIX = "observation.images."
"""Camera columns are named `observation.images.<camera>` on disk and in raw observations."""

_EMPTY: Mapping[str, np.ndarray] = MappingProxyType({})


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
        for name, value in self.columns().items():
            if len(value) != length:
                raise ValueError(f"column {name!r} has {len(value)} frames, the actions have {length}")

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
