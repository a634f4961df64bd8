"""The simulated robots: which arms and grippers there are, where each base stands and how each gripper closes.

The models themselves come with robosuite; `selfalign.sim.prepare` composes an arm with a gripper once and keeps the
result in the user's cache. Positions are in the workspace frame that all of `selfalign.sim` shares: the origin is the
centre of the workspace on the table's surface, x points away from the robot, y to its left, z up, metres.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ArmModel:
    """An arm of robosuite and the two choices that are ours: where it stands and how it holds itself."""

    robosuite_name: str
    base_position: tuple[float, float, float]
    """Origin of the arm's base in the workspace frame, metres."""
    home: tuple[float, ...]
    """Joint angles in radians, elbow up and gripper down over the table; seeds the inverse kinematics, which then
    keeps redundant arms near this posture."""


@dataclass(frozen=True)
class FingerDrive:
    """One position-controlled finger joint; an opening of 1 is at `open`, 0 at `closed` (metres or radians)."""

    joint: str
    open: float
    closed: float
    stiffness: float
    damping: float
    force_limit: float
    """N or N m, whichever the joint takes."""
    armature: float = 0.1


@dataclass(frozen=True)
class GripperModel:
    """A gripper of robosuite and the joints that drive it (couplings between fingers stay as robosuite has them)."""

    robosuite_name: str
    drives: tuple[FingerDrive, ...]
    pads: tuple[str, ...]
    """Substrings of the names of the collision geoms that hold objects."""
    tip_offset: float = 0.0
    """Metres from robosuite's grip site to our tip along the approach direction."""
    finger_turn: float = 0.0
    """Radians about the approach direction from the grip site's x axis to the axis along which the fingers open."""
    can_lift: bool = True
    """Whether it lifts the cubes of our scenes dependably."""
    timestep: float = 0.005
    """Largest simulation step in seconds at which this gripper is stable."""


@dataclass(frozen=True)
class RobotSpec:
    """An arm with a gripper: any pair of `ARMS` x `GRIPPERS`."""

    arm: str
    gripper: str = "panda"

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"unknown arm {self.arm!r}; known arms: {', '.join(ARMS)}")
        if self.gripper not in GRIPPERS:
            raise ValueError(f"unknown gripper {self.gripper!r}; known grippers: {', '.join(GRIPPERS)}")

    @property
    def name(self) -> str:
        """`arm_gripper`, for instance `ur5e_panda`."""
        return f"{self.arm}_{self.gripper}"

    @property
    def can_lift(self) -> bool:
        """Whether the gripper lifts the cubes of our scenes dependably; every robot reaches and pushes them."""
        return GRIPPERS[self.gripper].can_lift

    @property
    def num_joints(self) -> int:
        """Joints of the arm, without the gripper's."""
        return len(ARMS[self.arm].home)


ARMS: dict[str, ArmModel] = {
    "panda": ArmModel("Panda", (-0.52, 0.0, 0.0), (0.0, 0.196, 0.0, -2.618, 0.0, 2.942, 0.785)),
    "ur5e": ArmModel("UR5e", (-0.55, 0.0, 0.0), (-0.47, -1.735, 2.48, -2.275, -1.59, -1.991)),
    "iiwa": ArmModel("IIWA", (-0.55, 0.0, 0.0), (0.0, 0.65, 0.0, -1.89, 0.0, 0.6, 0.0)),
    "kinova3": ArmModel("Kinova3", (-0.46, 0.0, 0.0), (0.0, 0.65, 0.0, 1.89, 0.0, 0.6, -1.571)),
    "xarm7": ArmModel("XArm7", (-0.45, 0.0, 0.0), (0.0, 0.0, 0.0, 1.225, 0.0, 1.225, 0.0)),
    "jaco": ArmModel("Jaco", (-0.44, 0.0, 0.0), (3.192, 3.68, 0.0, 1.17, 0.05, 3.76, 3.142)),
    "sawyer": ArmModel("Sawyer", (-0.60, 0.0, 0.0), (0.0, -1.18, 0.0, 2.18, 0.0, 0.57, -1.57)),
}

GRIPPERS: dict[str, GripperModel] = {
    "panda": GripperModel(
        robosuite_name="PandaGripper",
        drives=(
            FingerDrive("finger_joint1", open=0.04, closed=0.0, stiffness=500.0, damping=40.0, force_limit=20.0),
            FingerDrive("finger_joint2", open=-0.04, closed=0.0, stiffness=500.0, damping=40.0, force_limit=20.0),
        ),
        pads=("pad_collision",),
    ),
    "robotiq85": GripperModel(
        robosuite_name="Robotiq85Gripper",
        drives=tuple(
            FingerDrive(joint, 0.0, 0.8, stiffness=20.0, damping=3.0, force_limit=5.0, armature=0.005)
            for joint in ("finger_joint", "right_outer_knuckle_joint")
        ),
        pads=("fingertip_collision", "fingerpad_collision"),
        timestep=0.002,
    ),
    "xarm7": GripperModel(
        robosuite_name="XArm7Gripper",
        drives=tuple(
            FingerDrive(joint, 0.0, 0.85, stiffness=30.0, damping=3.0, force_limit=8.0, armature=0.01)
            for joint in ("left_driver_joint", "right_driver_joint")
        ),
        pads=("finger_pad",),
        finger_turn=np.pi / 2,
        timestep=0.0025,
    ),
    "jaco": GripperModel(
        robosuite_name="JacoThreeFingerGripper",
        drives=tuple(
            FingerDrive(f"joint_{finger}", 1.1, 0.0, stiffness=5.0, damping=0.6, force_limit=1.0, armature=0.005)
            for finger in ("thumb", "index", "pinky")
        ),
        pads=("pad_collision", "tip_collision"),
        can_lift=False,  # its three fingers close above a 4 cm cube and squeeze it out
        timestep=0.0025,
    ),
    "rethink": GripperModel(
        robosuite_name="RethinkGripper",
        drives=(
            FingerDrive("r_finger_joint", -0.020833, 0.0115, stiffness=500.0, damping=40.0, force_limit=20.0),
            FingerDrive("l_finger_joint", 0.020833, -0.0115, stiffness=500.0, damping=40.0, force_limit=20.0),
        ),
        pads=("fingerpad",),
    ),
}

ROBOTS: dict[str, RobotSpec] = {
    "panda": RobotSpec("panda", "panda"),
    "ur5e_panda": RobotSpec("ur5e", "panda"),
    "ur5e_robotiq85": RobotSpec("ur5e", "robotiq85"),
    "iiwa": RobotSpec("iiwa", "panda"),
    "kinova3": RobotSpec("kinova3", "panda"),
    "xarm7": RobotSpec("xarm7", "panda"),
    "jaco": RobotSpec("jaco", "panda"),
    "sawyer": RobotSpec("sawyer", "panda"),
    "xarm7_xarm7": RobotSpec("xarm7", "xarm7"),
    "jaco_jaco": RobotSpec("jaco", "jaco"),
    "sawyer_rethink": RobotSpec("sawyer", "rethink"),
}
"""The named robots; `RobotSpec(arm, gripper)` makes any other pair."""
