"""`Robot`: what a robot has to offer so that `selfalign play` can move and record it.

An action has one number for each *axis*: a joint, a direction of the tool, a gripper. The axis says where it may go,
how fast, and whether the number is a target or a displacement of the target. Nothing here knows of models or data sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Axis:
    """One dimension of an action.

    Raises:
        ValueError: no range, or a speed, unit step or lag that is not positive.
    """

    name: str
    low: float
    high: float
    """Where the target may be: the joint's limits less what you want to keep free, in your units."""
    speed: float
    """Most that the target may move, units a second; `inf` for a gripper that jumps between its ends."""
    step: float | None = None
    """None: an action is the target. Otherwise it is the target's displacement divided by this: what an action of 1
    moves, in units."""
    toggles: bool = False
    """It goes to one of its two ends or the other, as a gripper does; its measured position is not watched."""
    lag: float | None = None
    """Farthest that the measured position may be from its target, units; None: a quarter of the range."""

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"axis {self.name!r} goes from {self.low} to {self.high}: low must be below high")
        for name in ("speed", "step", "lag"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"axis {self.name!r}: {name} must be positive, got {value}")
        if np.isinf(self.speed) and not self.toggles:
            raise ValueError(f"axis {self.name!r} has no speed limit; only an axis that toggles may go without")

    @property
    def farthest(self) -> float:
        """Most that a measurement may be from its target."""
        return (self.high - self.low) / 4 if self.lag is None else self.lag


@dataclass(frozen=True)
class Box:
    """A workspace: corners in metres.

    Raises:
        ValueError: a corner that is not below the other one.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not (len(self.low) == len(self.high) == 3 and all(a < b for a, b in zip(self.low, self.high, strict=True))):
            raise ValueError(f"a workspace needs low < high in x, y and z (metres), got {self.low} and {self.high}")

    def holds(self, point: Float[np.ndarray, "3"], slack: float = 0.0) -> bool:
        """Whether a point lies within, or at most `slack` of each side beyond."""
        room = slack * (np.array(self.high) - self.low)
        return bool(((point >= self.low - room) & (point <= self.high + room)).all())

    def away(self, point: Float[np.ndarray, "3"]) -> float:
        """Metres from a point to the nearest one within; 0 for what lies within."""
        beyond = np.maximum(np.array(self.low) - point, point - np.array(self.high))
        return float(np.linalg.norm(np.maximum(beyond, 0.0)))


@dataclass(frozen=True)
class Description:
    """What a robot is, before it moves.

    Raises:
        ValueError: no axis, a name twice, or a rate that is not positive.
    """

    name: str
    hz: float
    """Control steps a second."""
    axes: tuple[Axis, ...]
    """Of an action, in its order."""
    state_names: tuple[str, ...]
    """Of `observation.state`, in its order."""
    workspace: Box | None = None
    """Where the tip may be; None: it is not watched."""
    tip_of: Callable[[Float[np.ndarray, " A"]], Float[np.ndarray, "3"]] | None = None
    """The tip, in metres, where the axes are at given positions. With it, motion turns back inside the workspace;
    without it, the robot is stopped once the measured tip has left it."""
    real_time: bool = True
    """False: a simulator, which does not wait for the next control step."""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names) or len(set(self.state_names)) != len(self.state_names):
            raise ValueError(
                f"robot {self.name!r} needs axes and states with names of their own, got {names} and "
                f"{list(self.state_names)}"
            )
        if not (np.isfinite(self.hz) and self.hz > 0):
            raise ValueError(f"robot {self.name!r} must have a positive control rate, got {self.hz} Hz")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the data set that the robot's play is written to."""
        axes = [{**vars(axis), "speed": axis.speed if np.isfinite(axis.speed) else None} for axis in self.axes]
        return {
            "name": self.name,
            "control_hz": self.hz,
            "axes": axes,
            "workspace": None if self.workspace is None else vars(self.workspace),
        }


@dataclass(frozen=True)
class Reading:
    """What a robot measures without its cameras."""

    position: Float[np.ndarray, " A"]
    """Of each axis, in its units (not of its displacement)."""
    tip: Float[np.ndarray, "3"] | None = None
    """Metres, in the frame of the workspace; None: not known."""
    contact: bool = False
    """The robot feels that it pushes against something."""


class Robot(Protocol):
    """A robot that can play. Methods may raise whatever they like: the recorder then calls `stop` and gives up."""

    @property
    def description(self) -> Description: ...

    def observe(self) -> Mapping[str, Any]:
        """`observation.images.<camera>` (uint8 [H, W, 3]) of each camera and `observation.state` (float [S])."""
        ...

    def measure(self) -> Reading:
        """Where the robot is now; called at every control step, so it must not wait for cameras."""
        ...

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        """Commands one control step and returns at once. A simulator advances by one step."""
        ...

    def stop(self) -> None:
        """Hold still where you are. Called between trajectories, at the end and when anything is wrong; `act` may come
        after it. Signals wait until it has returned. It does not replace the emergency stop in your hand."""
        ...

    def close(self) -> None:
        """Lets go of the hardware; nothing comes after it."""
        ...
