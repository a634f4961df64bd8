"""The simulator's robots: a scene and a wrist camera, the tip's position or the joints, displacements at 20 Hz.

`sim_<robot>` sees the tip in metres and moves it; `sim_<robot>_joint` sees the joints in radians and moves those. An
action of 1 is 3 cm or 0.1 rad; the gripper's opening is 1 open to 0 closed in the state, and -1 open, +1 close in the
action. Frames that a body changes on top are `data.perturb`'s business, and nothing needs a step here.
"""

from typing import Any

import numpy as np

from selfalign.embodiments.base import ACTION, IMAGES, STATE, TASK, Embodiment, Part
from selfalign.embodiments.steps import make_bool_mask

JOINTS = {
    "panda": 7,
    "ur5e_panda": 6,
    "ur5e_robotiq85": 6,
    "iiwa": 7,
    "kinova3": 7,
    "xarm7": 7,
    "jaco": 7,
    "sawyer": 7,
    "xarm7_xarm7": 7,
    "jaco_jaco": 7,
    "sawyer_rethink": 7,
}
"""Robot -> joints of its arm."""


def simulated(robot: str, joint: bool = False) -> Embodiment:
    """One robot in Cartesian or joint space.

    Raises:
        ValueError: an unknown robot.
    """
    if robot not in JOINTS:
        raise ValueError(f"the simulator has no robot {robot!r}; it has {', '.join(JOINTS)}")
    moved = tuple(f"joint_{i}" for i in range(JOINTS[robot])) if joint else ("x", "y", "z")
    return Embodiment(
        f"sim_{robot}" + ("_joint" if joint else ""),
        cameras={camera: (IMAGES + camera,) for camera in ("scene", "wrist")},
        state=(Part((*moved, "opening"), (STATE,)),),
        action=(Part((*moved, "gripper"), (ACTION,)),),
        displaced=make_bool_mask(len(moved), -1),
    )


ROBOTS = tuple(simulated(robot, joint) for robot in JOINTS for joint in (False, True))


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as the simulator's environments give it in Cartesian space."""
    rng = np.random.default_rng(seed)
    return {
        f"{IMAGES}scene": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        f"{IMAGES}wrist": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        STATE: rng.uniform(0, 0.1, 4).astype(np.float32),
        TASK: "reach the red cube",
    }
