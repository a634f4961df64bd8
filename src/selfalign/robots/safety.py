"""`Guard`: nothing is commanded beyond the limits, and motion ends where a measurement lies beyond them."""

from collections import Counter

import numpy as np
from jaxtyping import Float

from selfalign.robots.protocol import Axis, Description, Reading

OVERSHOOT = 0.05
"""Part of a range that a measurement may lie beyond its limit, since servos overshoot."""
_ROUNDING = 1e-9


class SafetyStop(RuntimeError):
    """A limit was passed, and the robot has to stop; the message names the limit."""


class Guard:
    """Watches one robot: asked at each control step what may be commanded.

    Args:
        description: of the robot; its axes and workspace are the limits.
        axes: with less room or speed than the robot's own (`narrowed`), which then are the limits; None: those.
        stop_on_contact: whether a robot that feels contact is stopped.
    """

    def __init__(self, description: Description, axes: tuple[Axis, ...] | None = None, *, stop_on_contact: bool = True):
        self._description, self._stop_on_contact = description, stop_on_contact
        self.axes = axes = axes or description.axes
        self._low, self._high = np.array([axis.low for axis in axes]), np.array([axis.high for axis in axes])
        self._stride = np.array([axis.speed for axis in axes]) / description.hz
        self._lag = np.array([axis.farthest for axis in axes])
        # Servos overshoot no less where there is less room.
        self._slack = OVERSHOOT * np.array([axis.high - axis.low for axis in description.axes])
        self._watched = np.array([not axis.toggles for axis in axes])
        self.target = np.where(self._watched, (self._low + self._high) / 2, self._low)
        """Commanded last."""
        self.held_back: Counter[str] = Counter()
        """How often each limit changed a command."""
        self.moved = False
        """Whether an axis that does not toggle was commanded elsewhere since `begin`."""

    def begin(self, reading: Reading) -> Float[np.ndarray, " A"]:
        """Takes the position measured as the target, also where it is a little outside: the way back is at the speed
        that axes may have. Toggling axes keep theirs.

        Raises:
            SafetyStop: the robot stands beyond a limit, or its workspace cannot be watched.
        """
        if self._description.workspace is not None and self._tip(reading) is None:
            raise SafetyStop(
                "the workspace cannot be watched: let measure() tell the tip, or give the description a tip_of"
            )
        self._check_position(reading)
        self.target = np.where(self._watched, np.asarray(reading.position, float), self.target)
        self.moved = False
        self.check(reading)
        return self.target

    def check(self, reading: Reading) -> None:
        """Whether motion may go on.

        Raises:
            SafetyStop: contact, or a measurement that is missing or beyond a limit.
        """
        if reading.contact and self._stop_on_contact:
            raise SafetyStop("the robot reports contact")
        self._check_position(reading)
        behind = np.abs(self.target - reading.position)
        for axis, found, most in self._beyond(behind, self._lag):
            raise SafetyStop(
                f"axis {axis.name!r} is {found:.4g} from where it was commanded (limit {most:.4g}): does something "
                "hold it, or can it not follow so fast?"
            )
        box, tip = self._description.workspace, self._tip(reading)
        if box is not None and tip is not None and not box.holds(tip, OVERSHOOT):
            raise SafetyStop(
                f"the tip is at {_told(tip)} m, outside of the workspace from {_told(box.low)} to {_told(box.high)}"
            )

    def allows(self, target: Float[np.ndarray, " A"]) -> bool:
        """Whether the tip would be in the workspace, or nearer to it than where it was commanded last, so that a robot
        that stands a little outside comes back; True where that cannot be told."""
        box, tip_of = self._description.workspace, self._description.tip_of
        if box is None or tip_of is None:
            return True
        away = box.away(np.asarray(tip_of(target), float))
        return away == 0 or away < box.away(np.asarray(tip_of(self.target), float))

    def limit(self, wanted: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
        """The target nearest to the wanted one that may be commanded, which counts as commanded from now on. Outside of
        its range an axis goes no farther out. Where the tip would leave the workspace (`allows`), the target stays
        where it is.

        Raises:
            SafetyStop: a wanted target that is not finite.
        """
        if not np.isfinite(wanted).all():
            raise SafetyStop(f"a target that is not finite was asked for: {wanted}")
        near = self.target + np.clip(wanted - self.target, -self._stride, self._stride)
        target = np.clip(near, np.minimum(self._low, self.target), np.maximum(self._high, self.target))
        self._count("speed", wanted - near)
        self._count("range", near - target)
        if not self.allows(target):
            self.held_back["workspace"] += 1
            return self.target
        self.moved |= bool((target != self.target)[self._watched].any())
        self.target = target
        return target

    def _tip(self, reading: Reading) -> np.ndarray | None:
        if reading.tip is not None:
            return np.asarray(reading.tip, float)
        tip_of = self._description.tip_of
        return None if tip_of is None else np.asarray(tip_of(np.asarray(reading.position, float)), float)

    def _check_position(self, reading: Reading) -> None:
        position = np.asarray(reading.position, float)
        if position.shape != self.target.shape or not np.isfinite(position[self._watched]).all():
            raise SafetyStop(
                f"measure() must tell {len(self.target)} finite positions, one for each axis, got {reading.position}"
            )
        for axis, _, _ in self._beyond(np.maximum(self._low - position, position - self._high), self._slack):
            found = position[self.axes.index(axis)]
            raise SafetyStop(
                f"axis {axis.name!r} is at {found:.4g}, beyond its limits {axis.low:g} to {axis.high:g}: "
                "move it back by hand"
            )

    def _beyond(self, values: np.ndarray, most: np.ndarray) -> list[tuple[Axis, float, float]]:
        wrong = np.flatnonzero(self._watched & (values > most + _ROUNDING))
        return [(self.axes[i], float(values[i]), float(most[i])) for i in wrong]

    def _count(self, limit: str, cut: np.ndarray) -> None:
        for i in np.flatnonzero(np.abs(cut) > _ROUNDING):
            self.held_back[f"{limit} of {self.axes[i].name}"] += 1


def _told(point: object) -> str:
    return "[" + ", ".join(f"{x:.3f}" for x in np.asarray(point, float)) + "]"
