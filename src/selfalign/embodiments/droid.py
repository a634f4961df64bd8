"""DROID: a Franka Panda with a Robotiq gripper at 15 Hz, one exterior and one wrist camera.

`droid` takes joint velocities, as DROID's own controller and openpi's DROID checkpoints do; `droid_joint_position`
takes joint targets, which the model sees as displacements. The gripper is 0 open, 1 closed.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, make_bool_mask

JOINTS = tuple(f"joint_{i}" for i in range(7))

DROID = Embodiment(
    "droid",
    cameras={
        "base_0_rgb": (
            "observation/exterior_image_1_left",
            "exterior_image_1_left",
            "observation.images.exterior_1_left",
        ),
        "left_wrist_0_rgb": ("observation/wrist_image_left", "wrist_image_left", "observation.images.wrist_left"),
    },
    state=(
        Part(JOINTS, ("observation/joint_position", "joint_position", "observation.state.joint_position")),
        Part(("gripper",), ("observation/gripper_position", "gripper_position", "observation.state.gripper_position")),
    ),
    action=(Part((*JOINTS, "gripper"), ("actions",)),),
    displaced=make_bool_mask(7, -1),
    unused=("observation/exterior_image_2_left", "exterior_image_2_left", "observation.images.exterior_2_left"),
    fps=15.0,
    asset_id="droid",
)
JOINT_POSITION = replace(
    DROID, name="droid_joint_position", displaced=None, steps=(DeltaActions(make_bool_mask(7, -1)),)
)
ROBOTS = (DROID, JOINT_POSITION)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as DROID's client sends it."""
    rng = np.random.default_rng(seed)
    return {
        "observation/exterior_image_1_left": rng.integers(0, 256, (180, 320, 3), dtype=np.uint8),
        "observation/wrist_image_left": rng.integers(0, 256, (180, 320, 3), dtype=np.uint8),
        "observation/joint_position": rng.uniform(-1, 1, 7),
        "observation/gripper_position": rng.uniform(0, 1, 1),
        "prompt": "put the marker in the bowl",
    }
