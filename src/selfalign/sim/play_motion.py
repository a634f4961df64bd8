"""Play: smooth random motion that knows the workspace and nothing of what lies in it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from selfalign.sim.control import TIP_STEP, Controller, Motion

_LOW, _HIGH = np.array([-0.15, -0.15, 0.02]), np.array([0.15, 0.15, 0.25])
_NEAR_TABLE = 0.08
"""Waypoints below this height come near the objects and sometimes touch them."""
_NEAR_TABLE_SHARE = 0.4
_BABBLE_FLOOR = 0.12
"""Joint babbling tilts the tool; it keeps this clear of the table."""
_TOGGLE_PROBABILITY = 0.04
_SMOOTHING = 0.5
_BABBLE_SCALE = 0.04
"""Radians, standard deviation of each joint's wandering offset."""
_BABBLE_MEMORY = 0.85


@dataclass
class PlayMotion:
    """Random waypoints at random speeds, the gripper opening and closing at random.

    With `babble`, a slowly wandering offset is added to every joint, so that motion also leaves the vertical-tool
    postures that inverse kinematics gives.

    Args:
        rng: all randomness comes from it.
        babble: whether joints wander.
        extent: waypoints lie in this share of the workspace, about its centre.
    """

    rng: np.random.Generator
    babble: bool = False
    extent: float = 1.0
    _velocity: Float[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3))
    _waypoint: Float[np.ndarray, "3"] | None = None
    _speed: float = 1.0
    _patience: int = 0
    _gripper: float = -1.0
    _wander: Float[np.ndarray, " n"] | None = None

    def step(self, controller: Controller) -> Motion:
        """One control step."""
        tip = controller.tip_target
        if self._waypoint is None or self._patience == 0 or np.linalg.norm(self._waypoint - tip) < 0.02:
            self._new_waypoint()
        self._patience -= 1
        ahead = (self._waypoint - tip) / TIP_STEP
        wanted = ahead * min(1.0, self._speed / max(float(np.linalg.norm(ahead)), 1e-6))
        self._velocity = _SMOOTHING * self._velocity + (1 - _SMOOTHING) * wanted
        if self.rng.random() < _TOGGLE_PROBABILITY:
            self._gripper = -self._gripper
        if not self.babble:
            return controller.move_tip(self._velocity, self._gripper)
        return controller.move_joints_to(self._wandering(controller), self._gripper)

    def _new_waypoint(self) -> None:
        low, high = _LOW.copy(), _HIGH.copy()
        if self.babble:
            low[2] = _BABBLE_FLOOR
        elif self.rng.random() < _NEAR_TABLE_SHARE:
            high[2] = _NEAR_TABLE
        inward = (1 - self.extent) * (_LOW + _HIGH) / 2
        self._waypoint = inward + self.extent * self.rng.uniform(low, high)
        self._speed = float(self.rng.uniform(0.2, 1.2))
        self._patience = int(self.rng.integers(5, 25))

    def _wandering(self, controller: Controller) -> Float[np.ndarray, " n"]:
        """Joints of the next tip target, off by the wandering offset; the tip moves at most a full delta."""
        kinematics, before = controller.sim.kinematics, controller.joint_target
        if self._wander is None:
            self._wander = np.zeros(len(before))
        steered, _ = kinematics.solve(controller.limit(self._velocity), before - self._wander)
        fresh = self.rng.normal(scale=_BABBLE_SCALE, size=len(before))
        self._wander = _BABBLE_MEMORY * self._wander + np.sqrt(1 - _BABBLE_MEMORY**2) * fresh
        joints = steered + self._wander
        stride = float(np.abs(kinematics.tip(joints) - controller.tip_target).max()) / TIP_STEP
        return before + (joints - before) / max(1.0, 1.05 * stride)
