"""Franka Panda or FR3 with a parallel gripper at 20 Hz (for DROID's setup, see `droid.py`).

`franka_joint` takes joint targets (radians), `franka_cartesian` targets of the tool's pose: position in metres and
rotation vector in radians, both in the base frame. The model sees either as displacements; the gripper (0 open, 1
closed) stays absolute.
"""

from typing import Any

import numpy as np

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, DeltaPose, make_bool_mask

JOINTS = tuple(f"joint_{i}" for i in range(7))
POSE = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z")
GRIPPER = Part(("gripper",), ("observation/gripper_position", "gripper_position"))
CAMERAS = {
    "base_0_rgb": ("observation/image", "image", "observation.images.front", "observation.images.base"),
    "left_wrist_0_rgb": ("observation/wrist_image", "wrist_image", "observation.images.wrist"),
}

JOINT = Embodiment(
    "franka_joint",
    cameras=CAMERAS,
    state=(Part(JOINTS, ("observation/joint_position", "joint_position")), GRIPPER),
    action=(Part((*JOINTS, "gripper"), ("actions",)),),
    steps=(DeltaActions(make_bool_mask(7, -1)),),
    asset_id="franka",
)
CARTESIAN = Embodiment(
    "franka_cartesian",
    cameras=CAMERAS,
    state=(Part(POSE, ("observation/tool_pose", "tool_pose")), GRIPPER),
    action=(Part((*POSE, "gripper"), ("actions",)),),
    steps=(DeltaPose(),),
)
ROBOTS = (JOINT, CARTESIAN)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation that both read: joints and pose of the tool."""
    rng = np.random.default_rng(seed)
    return {
        "observation/joint_position": rng.uniform(-1, 1, 7),
        "observation/tool_pose": rng.uniform(-1, 1, 6),
        "observation/gripper_position": rng.uniform(0, 1, 1),
        "observation/image": rng.integers(0, 256, (240, 320, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (240, 320, 3), dtype=np.uint8),
        "prompt": "open the drawer",
    }
