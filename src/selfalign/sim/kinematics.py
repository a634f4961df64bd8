"""Damped-least-squares inverse kinematics of the tip with the tool held vertical (Buss 2004).

One step solves `dq = J^T (J J^T + damping^2 I)^-1 e` for the six-dimensional error `e` of the tip's pose, and moves
redundant arms towards their home posture in the null space of `J`.
"""

import mujoco
import numpy as np
from jaxtyping import Float

TOOL_VERTICAL = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Columns: the tip's axes (fingers, sideways, approach) in the workspace frame when the tool points straight down."""


class InverseKinematics:
    """Joint angles for tip positions, fingers opening along the workspace's y axis and the approach straight down.

    Works on its own copy of the simulation's state, so solving never disturbs it.

    Args:
        model: a scene of `selfalign.sim.prepare` with a site `tip`.
        joint_ids: the arm's joints, base first.
        home: joint angles that attract redundant arms, radians.
    """

    def __init__(self, model: mujoco.MjModel, joint_ids: list[int], home: Float[np.ndarray, " n"]):
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site("tip").id
        self._qpos = model.jnt_qposadr[joint_ids]
        self._dofs = model.jnt_dofadr[joint_ids]
        limited = model.jnt_limited[joint_ids].astype(bool)
        self.lower = np.where(limited, model.jnt_range[joint_ids, 0], -2 * np.pi)
        self.upper = np.where(limited, model.jnt_range[joint_ids, 1], 2 * np.pi)
        self.home = np.asarray(home, dtype=np.float64)
        self._jacobian = np.zeros((6, model.nv))

    def _forward(self, joints: Float[np.ndarray, " n"]) -> None:
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)

    def tip(self, joints: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 3"]:
        """Forward kinematics: the tip's position in the workspace frame, metres."""
        self._forward(joints)
        return self._data.site_xpos[self._site].copy()

    def _error(self, target: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 6"]:
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        # The axis-angle error to first order: half the sum of the cross products of the frames' axes (np.cross takes
        # longer than all the rest).
        m = rotation @ TOOL_VERTICAL.T
        turn = 0.5 * np.array([m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0]])
        return np.concatenate([target - self._data.site_xpos[self._site], turn])

    def solve(
        self,
        target: Float[np.ndarray, " 3"],
        start: Float[np.ndarray, " n"],
        *,
        iterations: int = 8,
        damping: float = 0.03,
        posture_gain: float = 0.1,
        tolerance: float = 5e-4,
    ) -> tuple[Float[np.ndarray, " n"], float]:
        """Joint angles in radians that bring the tip to `target`, and the error left (metres, plus 0.1 m per radian).

        Args:
            target: in the workspace frame, metres.
            start: where the search begins; near solutions are found, so the arm does not jump.
        """
        joints = np.clip(start, self.lower, self.upper)
        residual = np.inf
        for _ in range(iterations):
            self._forward(joints)
            error = self._error(target)
            residual = float(np.linalg.norm(error[:3]) + 0.1 * np.linalg.norm(error[3:]))
            if residual < tolerance:
                break
            joints = np.clip(joints + self._step(error, joints, damping, posture_gain), self.lower, self.upper)
        return joints, residual

    def _step(
        self, error: Float[np.ndarray, " 6"], joints: Float[np.ndarray, " n"], damping: float, posture_gain: float
    ) -> Float[np.ndarray, " n"]:
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, self._dofs]
        system = jacobian @ jacobian.T + damping**2 * np.eye(6)
        step = jacobian.T @ np.linalg.solve(system, error)
        if len(joints) > 6:
            posture = posture_gain * (self.home - joints)
            step += posture - jacobian.T @ np.linalg.solve(system, jacobian @ posture)
        largest = np.abs(step).max()
        return step * min(1.0, 0.3 / largest)
