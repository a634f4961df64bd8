"""Joints and places of an arm: MuJoCo's forward kinematics, mink's differential inverse kinematics.

Any arm whose model MuJoCo reads (MJCF or URDF) will do. mink minimises a quadratic programme within the joints' limits
(https://github.com/kevinzakka/mink); both packages are in the extra `kinematics`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from jaxtyping import Float

ITERATIONS = 100
TOLERANCE = 1e-8
"""Error (metres and radians, root of the sum of squares) at which a search ends."""
REACHED = 1e-4
"""Error above which a target is out of reach."""


class ArmKinematics:
    """One arm: joint angles (radians) to the place of its tool (metres, MuJoCo's world frame) and back.

    Raises:
        ImportError: MuJoCo or mink is not installed.
        ValueError: the model lacks the site or a joint, or a joint does not turn or slide.
    """

    def __init__(self, model: Any, site: str, joints: Sequence[str]) -> None:
        """Args:
        model: a `mujoco.MjModel` with the arm.
        site: the tool.
        joints: names of the arm's joints, in the order of states and actions.
        """
        self._mujoco, self._mink = _packages()
        ids = [self._mujoco.mj_name2id(model, self._mujoco.mjtObj.mjOBJ_JOINT, name) for name in joints]
        missing = [name for name, number in zip(joints, ids, strict=True) if number < 0]
        if missing or self._mujoco.mj_name2id(model, self._mujoco.mjtObj.mjOBJ_SITE, site) < 0:
            raise ValueError(f"the model has no {'joint ' + ', '.join(missing) if missing else 'site ' + site}")
        if any(
            model.jnt_type[i] not in (self._mujoco.mjtJoint.mjJNT_HINGE, self._mujoco.mjtJoint.mjJNT_SLIDE) for i in ids
        ):
            raise ValueError("an arm's joints must turn or slide")
        self.site, self.joints = site, tuple(joints)
        self._model, self._qpos, self._dofs = model, model.jnt_qposadr[ids], model.jnt_dofadr[ids]
        self._configuration = self._mink.Configuration(model)
        self._start = self._configuration.q.copy()
        self._others = np.setdiff1d(np.arange(model.nv), self._dofs)
        self._limits = [self._mink.ConfigurationLimit(model)]

    @classmethod
    def load(cls, path: str | Path, site: str, joints: Sequence[str]) -> Self:
        """From a model's file (MJCF or URDF)."""
        mujoco, _ = _packages()
        return cls(mujoco.MjModel.from_xml_path(str(path)), site, joints)

    def place(self, joints: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
        """The tool's position and rotation."""
        self._put(joints)
        pose = self._configuration.get_transform_frame_to_world(self.site, "site")
        return pose.translation().copy(), pose.rotation().as_matrix()

    def positions(self, joints: Float[np.ndarray, "T n"]) -> Float[np.ndarray, "T 3"]:
        """The tool's position at each of T joint angles."""
        return np.stack([self.place(row)[0] for row in joints])

    def solve(
        self, position: Float[np.ndarray, " 3"], rotation: Float[np.ndarray, "3 3"], start: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """Joint angles near `start` that bring the tool to a place.

        Raises:
            ValueError: the place is out of reach from there.
        """
        mink = self._mink
        task = mink.FrameTask(self.site, "site", position_cost=1.0, orientation_cost=1.0)
        turn = mink.SO3.from_matrix(np.asarray(rotation, dtype=np.float64))
        task.set_target(mink.SE3.from_rotation_and_translation(turn, np.asarray(position, dtype=np.float64)))
        self._put(start)
        error = np.inf
        for _ in range(ITERATIONS):
            error = float(np.linalg.norm(task.compute_error(self._configuration)))
            if error < TOLERANCE:
                break
            velocity = mink.solve_ik(self._configuration, [task], 1.0, "daqp", damping=1e-6, limits=self._limits)
            velocity[self._others] = 0.0
            self._configuration.integrate_inplace(velocity, 1.0)
        if error > REACHED:
            told = ", ".join(f"{value:.3f}" for value in position)
            raise ValueError(f"no joint angles near {np.round(start, 2).tolist()} bring {self.site} to ({told}) m")
        return self._configuration.q[self._qpos].copy()

    def _put(self, joints: np.ndarray) -> None:
        q = self._start.copy()
        q[self._qpos] = joints
        self._configuration.update(q)


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import mink
        import mujoco
    except ImportError as error:
        raise ImportError(f"kinematics needs {error.name}: pip install 'selfalign[kinematics]'") from error
    return mujoco, mink
