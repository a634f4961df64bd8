"""Smooth random motion of a robot's axes: between random waypoints, or each axis babbling by itself.

Velocity follows a goal within a largest acceleration, and brakes in time to be at rest there:

    v_goal = sign(d) min(cruise, sqrt(2 a d + (a dt / 2)^2) - a dt / 2),   |v' - v| <= a dt,   d: the way that is left
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from selfalign.robots.protocol import Axis

Kind = Literal["waypoints", "babble"]
_PATIENCE = (0.5, 3.0)
"""Seconds after which a goal is given up."""
_NEAR = 0.02
"""Part of an axis's range within which a goal counts as reached."""
_RESTING = 0.3
"""How often a babbling axis rests instead of going to a new goal."""
_TOGGLES_A_SECOND = 0.8
_ATTEMPTS = 50
"""Draws of a goal in the workspace, before the axes stay where they are."""


@dataclass(frozen=True)
class Tempo:
    """What random motion makes of the speed that axes may have.

    Raises:
        ValueError: a ramp that is not positive, or a share that is not in (0, 1].
    """

    ramp: float
    """Seconds from rest to full speed."""
    slowest: float
    """Least part of full speed at which a goal is gone to; each goal draws its own, from there to all of it."""

    def __post_init__(self) -> None:
        if not (self.ramp > 0 and 0 < self.slowest <= 1):
            raise ValueError(
                f"a tempo needs a positive ramp and a slowest part in (0, 1], got {self.ramp}, {self.slowest}"
            )


CALM, BRISK = Tempo(ramp=0.4, slowest=0.2), Tempo(ramp=0.1, slowest=0.8)


class RandomMotion:
    """Proposes the next target from the present one; all randomness comes from `rng`.

    Args:
        axes: where they may go and how fast.
        hz: control rate.
        rng: source of randomness.
        kind: `waypoints`: all axes set out together and arrive together; `babble`: each goes its own way in its own
            time.
        allows: whether a goal may be gone to (`Guard.allows`).
        tempo: how fast, within the axes' speeds.
    """

    def __init__(
        self,
        axes: tuple[Axis, ...],
        hz: float,
        rng: np.random.Generator,
        kind: Kind = "waypoints",
        allows: Callable[[Float[np.ndarray, " A"]], bool] = lambda target: True,
        tempo: Tempo = CALM,
    ):
        self._rng, self._kind, self._allows, self._dt = rng, kind, allows, 1.0 / hz
        self._slowest = tempo.slowest
        self._low, self._high = np.array([axis.low for axis in axes]), np.array([axis.high for axis in axes])
        self._toggles = np.array([axis.toggles for axis in axes])
        speed = np.array([axis.speed for axis in axes])
        self._stride = speed / hz  # of an axis that toggles, which has no ramp
        self._speed = np.where(self._toggles, self._high - self._low, speed)
        self._acceleration = self._speed / tempo.ramp
        self.begin(np.zeros(len(axes)))

    def begin(self, target: Float[np.ndarray, " A"]) -> None:
        """Sets out from rest at a target."""
        self._up = target > (self._low + self._high) / 2  # the end that an axis which toggles is to be at
        self.refused = 0
        """How often a goal or a step was not allowed."""
        self._rest(target)

    @property
    def resting(self) -> bool:
        """Whether the target would stay where it is."""
        return not self._velocity.any()

    def next(self, target: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
        """The target of the next control step."""
        self._patience = self._patience - 1
        near = np.abs(self._goal - target) <= _NEAR * (self._high - self._low)
        arrived = near & (self._cruise > 0) & ~self._toggles
        done = (self._patience <= 0) | arrived
        if self._kind == "babble" and done.any():
            self._draw(done, target)
        elif self._kind == "waypoints" and done[~self._toggles].all():
            self._draw(np.full(len(target), True), target)
        ahead, braking = self._goal - target, self._acceleration * self._dt
        in_time = np.sqrt(2 * self._acceleration * np.abs(ahead) + (braking / 2) ** 2) - braking / 2
        moved = self._move(target, np.sign(ahead) * np.minimum(self._cruise, in_time))
        if not self._allows(moved):
            self.refused += 1
            self._rest(target)
            return target
        return np.where(self._toggles, self._toggled(target), moved)

    def slow_down(self, target: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
        """As `next`, but on the way to rest."""
        return np.where(self._toggles, target, self._move(target, np.zeros(len(target))))

    def _rest(self, target: np.ndarray) -> None:
        """Without velocity or goal: the next step draws one."""
        self._velocity, self._cruise = np.zeros(len(target)), np.zeros(len(target))
        self._goal, self._patience = target.copy(), np.zeros(len(target), dtype=int)

    def _move(self, target: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        change = self._acceleration * self._dt
        self._velocity = self._velocity + np.clip(wanted - self._velocity, -change, change)
        self._velocity[self._toggles] = 0.0
        # A target that is outside, where a servo overshot, comes back within its speed; it is not cut off at the limit.
        low, high = np.minimum(self._low, target), np.maximum(self._high, target)
        return np.clip(target + self._velocity * self._dt, low, high)

    def _toggled(self, target: np.ndarray) -> np.ndarray:
        self._up = self._up ^ (self._rng.random(len(target)) < _TOGGLES_A_SECOND * self._dt)
        ahead = np.where(self._up, self._high, self._low) - target
        return target + np.clip(ahead, -self._stride, self._stride)

    def _draw(self, which: Bool[np.ndarray, " A"], target: np.ndarray) -> None:
        """New goals, speeds and patience for some axes."""
        self._goal = self._drawn_goal(which, target)
        lowest, highest = np.round(np.array(_PATIENCE) / self._dt).astype(int)
        shares = self._rng.uniform(self._slowest, 1.0, size=len(target))
        patience = self._rng.integers(lowest, highest + 1, size=len(target))
        cruise = shares * self._speed * (self._goal != target)  # an axis that rests has nowhere to go
        if self._kind == "waypoints":
            ahead = np.abs(self._goal - target) * ~self._toggles
            slowest = max(float((ahead / self._speed).max()), 1e-9)  # seconds at full speed
            cruise, patience = shares[0] * ahead / slowest, patience[0]
        self._cruise = np.where(which, cruise, self._cruise)
        self._patience = np.where(which, patience, self._patience)

    def _drawn_goal(self, which: np.ndarray, target: np.ndarray) -> np.ndarray:
        before = np.clip(np.where(which, target, self._goal), self._low, self._high)
        moving = which.copy()
        if self._kind == "babble":
            moving &= self._rng.random(len(target)) >= _RESTING
        for _ in range(_ATTEMPTS):
            goal = np.where(moving, self._rng.uniform(self._low, self._high), before)
            if self._allows(goal):
                return goal
        self.refused += 1
        return target.copy()


def narrowed(axes: tuple[Axis, ...], around: Float[np.ndarray, " A"], reach: float, speed: float) -> tuple[Axis, ...]:
    """The same axes with less room and less speed, and with so much less lag that something which holds them shows
    within that room; those that toggle stay as they are.

    Args:
        axes: of a robot.
        around: where they are now.
        reach: part of each range that is left, around there as far as the limits allow.
        speed: part of each speed that is left.

    Raises:
        ValueError: parts that are not in (0, 1].
    """
    if not (0 < reach <= 1 and 0 < speed <= 1):
        raise ValueError(f"reach and speed are parts of the robot's own limits, in (0, 1]; got {reach} and {speed}")

    def narrow(axis: Axis, at: float) -> Axis:
        if axis.toggles:
            return axis
        whole = axis.high - axis.low
        half = reach * whole / 2
        middle = float(np.clip(at, axis.low + half, axis.high - half))
        lag = min(axis.farthest, reach * max(axis.farthest, whole / 4))
        return replace(axis, low=middle - half, high=middle + half, speed=speed * axis.speed, lag=lag)

    return tuple(narrow(axis, float(at)) for axis, at in zip(axes, around, strict=True))
