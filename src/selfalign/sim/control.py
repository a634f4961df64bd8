"""From actions in [-1, 1] to commanded targets: the one place where a delta becomes motion.

A delta moves the *commanded* target, not the measured pose, so that a servo's lag does not eat small actions. The
target is kept in the workspace and near the measured pose, so that a gripper that an obstacle holds back does not wind
up. What was executed after those limits is returned as a `Motion`, in every action space at once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from selfalign.sim.engine import WORKSPACE_HIGH, WORKSPACE_LOW, Simulation

TIP_STEP = 0.03
"""Metres of an end-effector delta of 1."""
JOINT_STEP = 0.1
"""Radians of a joint delta of 1."""
TIP_LEASH = 0.06
"""Farthest that the commanded tip may be from the measured one, metres."""
JOINT_LEASH = 0.3
"""Farthest that a commanded joint may be from the measured one, radians."""


@dataclass(frozen=True)
class Motion:
    """What one control step did, in canonical numbers."""

    delta: Float[np.ndarray, "3"]
    """Executed tip displacement / `TIP_STEP`."""
    tip_target: Float[np.ndarray, "3"]
    """Commanded tip, metres."""
    joint_delta: Float[np.ndarray, " n"]
    """Executed joint displacement / `JOINT_STEP`."""
    joint_target: Float[np.ndarray, " n"]
    """Commanded joints, radians."""
    gripper: float
    """-1 open, +1 close."""


class Controller:
    """Holds the commanded target of one simulation and moves it."""

    def __init__(self, sim: Simulation):
        self.sim = sim
        self.reset()

    def reset(self) -> None:
        """Take the commanded target from the simulation; call after each `Simulation.reset`."""
        self.tip_target = self.sim.tip.copy()
        self.joint_target = self.sim.joint_target.copy()

    def limit(self, delta: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """The tip target that a delta would command now."""
        target = self.tip_target + TIP_STEP * np.clip(delta, -1, 1)
        return self._within(target)

    def _within(self, target: np.ndarray) -> np.ndarray:
        tip = self.sim.tip
        offset = target - tip
        distance = float(np.linalg.norm(offset))
        if distance > TIP_LEASH:
            target = tip + offset * (TIP_LEASH / distance)
        return np.clip(target, WORKSPACE_LOW, WORKSPACE_HIGH)

    def move_tip(self, delta: Float[np.ndarray, "3"], gripper: float) -> Motion:
        """One step of an end-effector delta in [-1, 1]."""
        return self._command_tip(self.limit(delta), gripper)

    def move_tip_to(self, target: Float[np.ndarray, "3"], gripper: float) -> Motion:
        """One step toward an absolute tip target in metres, at most a full delta away."""
        return self.move_tip((np.asarray(target, float) - self.tip_target) / TIP_STEP, gripper)

    def _command_tip(self, target: np.ndarray, gripper: float) -> Motion:
        gripper = float(np.clip(gripper, -1, 1))
        self.sim.command_tip(target, gripper)
        return self._moved(target, self.sim.joint_target, gripper)

    def move_joints(self, delta: Float[np.ndarray, " n"], gripper: float) -> Motion:
        """One step of a joint delta in [-1, 1]."""
        gripper = float(np.clip(gripper, -1, 1))
        target = self.joint_target + JOINT_STEP * np.clip(delta, -1, 1)
        measured = self.sim.joints
        self.sim.command_joints(np.clip(target, measured - JOINT_LEASH, measured + JOINT_LEASH), gripper)
        return self._moved(self.sim.kinematics.tip(self.sim.joint_target), self.sim.joint_target, gripper)

    def move_joints_to(self, target: Float[np.ndarray, " n"], gripper: float) -> Motion:
        """One step toward absolute joint angles, at most a full delta away."""
        return self.move_joints((np.asarray(target, float) - self.joint_target) / JOINT_STEP, gripper)

    def _moved(self, tip_target: np.ndarray, joint_target: np.ndarray, gripper: float) -> Motion:
        motion = Motion(
            delta=(tip_target - self.tip_target) / TIP_STEP,
            tip_target=tip_target.copy(),
            joint_delta=(joint_target - self.joint_target) / JOINT_STEP,
            joint_target=joint_target.copy(),
            gripper=gripper,
        )
        self.tip_target, self.joint_target = motion.tip_target, motion.joint_target
        return motion
