"""One robot at a table with coloured cubes, controlled at 20 Hz: `Simulation`.

Everything is in the workspace frame (see `selfalign.sim.robots`): metres, radians, gripper commands in [-1, 1] with
-1 open and +1 closed. One compiled model per arm and gripper serves all cameras, appearances and arrangements.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from selfalign.sim.appearance import Appearance
from selfalign.sim.kinematics import InverseKinematics
from selfalign.sim.prepare import CUBE_COLOURS, CUBE_HALF, PARKED_HEIGHT, prepare
from selfalign.sim.render import IMAGE_SIZE, CameraPose, Renderer, View, WristMount
from selfalign.sim.robots import ARMS, GRIPPERS, ROBOTS, RobotSpec

CONTROL_HZ = 20.0
WORKSPACE_LOW = np.array([-0.16, -0.16, 0.02])
WORKSPACE_HIGH = np.array([0.16, 0.16, 0.30])
"""The box of tip positions that every robot reaches, metres."""
COLOURS = tuple(CUBE_COLOURS)
HAND_SIDES = np.array([[-0.095, 0.0, -0.072], [0.095, 0.0, -0.072]])
"""Two ends of the Panda gripper's hand, seen from the tip in its own frame, metres. A picture of the tip alone does not
show how far away it is; how large the hand appears does."""
HOLDING = 0.5
"""Opening of the Panda gripper around a cube: 4 of 8 cm."""


@functools.lru_cache(maxsize=16)
def _compiled(robot: RobotSpec) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(prepare(robot)))


class Simulation:
    """A robot, a table and up to four cubes.

    Args:
        robot: which arm and gripper, or a name of `ROBOTS`.
        appearance: colours and lights; `Appearance(None)` is the default look. May be replaced at any time.
        image_size: pixels of `render` where none are given.
        max_image_size: the most that `render` may be asked for.
    """

    def __init__(
        self,
        robot: RobotSpec | str = "panda",
        *,
        appearance: Appearance | None = None,
        image_size: int = IMAGE_SIZE,
        max_image_size: int = 256,
    ):
        self.robot = _named(robot) if isinstance(robot, str) else robot
        # A copy, because appearance and cameras are written into the model.
        self.model = copy.copy(_compiled(self.robot))
        self.data = mujoco.MjData(self.model)
        self.image_size = image_size
        self._max_image_size = max_image_size
        self._renderer: Renderer | None = None
        joints = self._arm_joints()
        self._qpos, self._dofs = self.model.jnt_qposadr[joints], self.model.jnt_dofadr[joints]
        self._tip = self.model.site("tip").id
        self._substeps = round(1.0 / CONTROL_HZ / self.model.opt.timestep)
        self.home = np.asarray(ARMS[self.robot.arm].home)
        self.kinematics = InverseKinematics(self.model, joints, self.home)
        self._set_up_gripper()
        self.set_appearance(appearance or Appearance())
        self.reset(np.array([0.0, 0.0, 0.15]))

    def _arm_joints(self) -> list[int]:
        num_joints = self.robot.num_joints
        return [int(self.model.actuator_trnid[actuator, 0]) for actuator in range(num_joints)]

    def _set_up_gripper(self) -> None:
        drives = GRIPPERS[self.robot.gripper].drives
        self._finger_qpos = [self.model.joint(f"gripper0_{drive.joint}").qposadr[0] for drive in drives]
        self._finger_open = np.array([drive.open for drive in drives])
        self._finger_closed = np.array([drive.closed for drive in drives])

    # --- what a controller may read

    @property
    def joints(self) -> Float[np.ndarray, " n"]:
        """Measured joint angles of the arm, radians."""
        return self.data.qpos[self._qpos].copy()

    @property
    def joint_target(self) -> Float[np.ndarray, " n"]:
        """The joint angles last commanded, radians."""
        return self._joint_target.copy()

    @property
    def joint_limits(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Lowest and highest joint angles, radians."""
        return self.kinematics.lower.copy(), self.kinematics.upper.copy()

    @property
    def tip(self) -> Float[np.ndarray, " 3"]:
        """Measured grasp point between the fingers, metres."""
        return self.data.site_xpos[self._tip].copy()

    @property
    def gripper_opening(self) -> float:
        """Measured: 1 open, 0 closed."""
        measured = self.data.qpos[self._finger_qpos]
        opening = (measured - self._finger_closed) / (self._finger_open - self._finger_closed)
        return float(np.clip(opening.mean(), 0.0, 1.0))

    # --- what only the simulator knows

    @property
    def cubes(self) -> tuple[str, ...]:
        """Colours of the cubes in the scene."""
        return self._cubes

    def cube_position(self, colour: str) -> Float[np.ndarray, " 3"]:
        """Centre of a cube, metres.

        Raises:
            ValueError: no such cube is in the scene.
        """
        if colour not in self._cubes:
            raise ValueError(f"no {colour} cube in the scene; there are: {', '.join(self._cubes) or 'none'}")
        return self.data.body(f"cube_{colour}").xpos.copy()

    @property
    def landmarks(self) -> Float[np.ndarray, "7 3"]:
        """The tip, the red, green, blue and yellow cubes (NaN where not in the scene) and the two ends of the hand,
        metres."""
        axes = self.data.site_xmat[self._tip].reshape(3, 3)
        cubes = [self.cube_position(c) if c in self._cubes else np.full(3, np.nan) for c in COLOURS]
        return np.stack([self.tip, *cubes, *(self.tip + HAND_SIDES @ axes.T)])

    # --- moving

    def reset(
        self,
        tip_position: Float[np.ndarray, " 3"],
        cube_poses: Mapping[str, tuple[float, float, float]] | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Puts the arm at rest with its tip at a position and the gripper open, and the cubes on the table.

        Args:
            tip_position: metres.
            cube_poses: per colour (x, y, yaw) in metres and radians; cubes not named are removed from the scene.
            rng: where given, redundant arms start from a posture drawn near home.

        Raises:
            ValueError: the arm cannot reach `tip_position`, or a cube has an unknown colour.
        """
        posture = self.home if rng is None else self.home + rng.normal(0.0, 0.1, len(self.home))
        target = np.asarray(tip_position, dtype=np.float64)
        joints, error = self.kinematics.solve(target, posture, iterations=150)
        if error > 0.005:
            raise ValueError(
                f"{self.robot.name} cannot reach tip position {target.round(3).tolist()}: {error:.3f} m off"
            )
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._qpos] = joints
        self.data.qpos[self._finger_qpos] = self._finger_open
        self._joint_target = joints
        self.data.ctrl[:] = np.concatenate([joints, self._finger_open])
        self._place_cubes(cube_poses or {})
        mujoco.mj_forward(self.model, self.data)

    def _place_cubes(self, poses: Mapping[str, tuple[float, float, float]]) -> None:
        unknown = set(poses) - set(COLOURS)
        if unknown:
            raise ValueError(f"unknown cube colours {sorted(unknown)}; known: {', '.join(COLOURS)}")
        self._cubes = tuple(colour for colour in COLOURS if colour in poses)
        for index, colour in enumerate(COLOURS):
            body = self.model.body(f"cube_{colour}").id
            start = self.model.joint(f"cube_{colour}").qposadr[0]
            # A cube that is not in the scene floats, weightless, where it touches nothing.
            self.model.body_gravcomp[body] = 0.0 if colour in poses else 1.0
            x, y, yaw = poses.get(colour, (float(index), 0.0, 0.0))
            z = CUBE_HALF if colour in poses else PARKED_HEIGHT
            self.data.qpos[start : start + 7] = (x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))

    def pose_joints(self, joints: Float[np.ndarray, " n"]) -> None:
        """Puts the arm at joint angles in radians, at once and without physics: for pictures."""
        self.data.qpos[self._qpos] = joints
        mujoco.mj_forward(self.model, self.data)

    def pose_gripper(self, opening: float, holding: str | None = None) -> None:
        """Puts the fingers at an opening (1 open, 0 closed), at once and without physics: for pictures.

        Args:
            opening: of the fingers.
            holding: colour of a cube that is put between them, as the hand holds it; the fingers are then as far apart
                as it is wide.
        """
        if holding is not None:
            body = self.model.body(f"cube_{holding}").id
            start = self.model.jnt_qposadr[self.model.body_jntadr[body]]
            rotation = self.data.site_xmat[self._tip]
            self.data.qpos[start : start + 3] = self.tip
            mujoco.mju_mat2Quat(self.data.qpos[start + 3 : start + 7], rotation)
            opening = HOLDING
        self.data.qpos[self._finger_qpos] = self._finger_closed + opening * (self._finger_open - self._finger_closed)
        mujoco.mj_forward(self.model, self.data)

    def command_tip(self, target: Float[np.ndarray, " 3"], gripper: float) -> None:
        """One control step (0.05 s) towards a tip position with the tool kept vertical.

        Args:
            target: metres; beyond reach the arm goes as far as it can.
            gripper: -1 open to +1 closed.
        """
        joints, _ = self.kinematics.solve(np.asarray(target, dtype=np.float64), self._joint_target)
        self.command_joints(joints, gripper)

    def command_joints(self, target: Float[np.ndarray, " n"], gripper: float) -> None:
        """One control step (0.05 s) towards joint angles in radians, which are clipped to the joints' limits.

        Raises:
            ValueError: wrong number of joints, or a value that is not finite.
        """
        target = np.asarray(target, dtype=np.float64)
        if target.shape != self._joint_target.shape:
            raise ValueError(f"{self.robot.name} has {len(self._joint_target)} joints, the command {target.shape}")
        if not (np.isfinite(target).all() and np.isfinite(gripper)):
            raise ValueError(f"command is not finite: joints {target.tolist()}, gripper {gripper}")
        target = np.clip(target, self.kinematics.lower, self.kinematics.upper)
        closing = (np.clip(gripper, -1.0, 1.0) + 1.0) / 2.0
        fingers = self._finger_open + closing * (self._finger_closed - self._finger_open)
        before = self._joint_target
        for step in range(1, self._substeps + 1):
            # The servos follow a ramp, not a jump: smoother, and the same at every time step.
            self.data.ctrl[: len(target)] = before + (target - before) * (step / self._substeps)
            self.data.ctrl[len(target) :] = fingers
            mujoco.mj_step(self.model, self.data)
        self._joint_target = target
        # mj_step leaves positions of bodies one step behind the joints.
        mujoco.mj_kinematics(self.model, self.data)

    # --- seeing

    def set_appearance(self, appearance: Appearance) -> None:
        """Recolours the scene; costs microseconds."""
        self.appearance = appearance
        appearance.apply(self.model, _compiled(self.robot))

    def mount_wrist(self, mount: WristMount) -> None:
        """Puts the camera `wrist` elsewhere on the hand."""
        camera, turn = self.model.camera("wrist").id, np.zeros(9)
        mujoco.mju_quat2Mat(turn, self.model.site_quat[self._tip])
        tip_to_hand = turn.reshape(3, 3)
        self.model.cam_pos[camera] = self.model.site_pos[self._tip] + tip_to_hand @ mount.position
        mujoco.mju_mat2Quat(self.model.cam_quat[camera], (tip_to_hand @ mount.axes).ravel())
        self.model.cam_fovy[camera] = mount.fovy

    @property
    def wrist_view(self) -> View:
        """Where the camera `wrist` is now."""
        mujoco.mj_camlight(self.model, self.data)
        camera = self.model.camera("wrist").id
        right, up, backward = self.data.cam_xmat[camera].reshape(3, 3).T
        axes = np.stack([right, -up, -backward])
        return View(self.data.cam_xpos[camera].copy(), axes, float(self.model.cam_fovy[camera]))

    def render(self, camera: CameraPose | str, size: int | None = None) -> UInt8[np.ndarray, "size size 3"]:
        """A square picture from a camera pose, or from the camera `"wrist"`."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, self._max_image_size)
        return self._renderer.render(self.data, camera, size or self.image_size)

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _named(name: str) -> RobotSpec:
    if name not in ROBOTS:
        raise ValueError(f"unknown robot {name!r}; known: {', '.join(ROBOTS)}")
    return ROBOTS[name]
