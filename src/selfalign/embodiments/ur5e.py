"""UR5e with a Robotiq 2F-85 gripper: joint targets at 20 Hz, one base and one wrist camera.

Joints in radians; the gripper is 0 open, 1 closed and stays absolute, the joints become displacements.
"""

from typing import Any

import numpy as np

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, make_bool_mask

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")

UR5E = Embodiment(
    "ur5e",
    cameras={
        "base_0_rgb": ("base_rgb", "image", "observation.images.base"),
        "left_wrist_0_rgb": ("wrist_rgb", "wrist_image", "observation.images.wrist"),
    },
    state=(Part(JOINTS, ("joints",)), Part(("gripper",), ("gripper",))),
    action=(Part((*JOINTS, "gripper"), ("actions",)),),
    steps=(DeltaActions(make_bool_mask(6, -1)),),
    asset_id="ur5e",
)
ROBOTS = (UR5E,)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as a UR5e's runtime sends it."""
    rng = np.random.default_rng(seed)
    return {
        "joints": rng.uniform(-np.pi, np.pi, 6),
        "gripper": rng.uniform(0, 1, 1),
        "base_rgb": rng.integers(0, 256, (240, 320, 3), dtype=np.uint8),
        "wrist_rgb": rng.integers(0, 256, (240, 320, 3), dtype=np.uint8),
        "prompt": "pick up the block",
    }
