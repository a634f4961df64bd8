"""SO-101 (and SO-100), LeRobot's 5-joint arm with a gripper: joint targets at 30 Hz.

Joints are in LeRobot's units (degrees, or percent of the range from -100 to 100), the gripper from 0 to 100; statistics
take care of either, as long as play and robot agree. Joints become displacements, the gripper stays absolute, as with
LeRobot's relative actions. Cameras are called as you plug them in; the usual names are known, others are given with
`dataclasses.replace(SO101, cameras={"base_0_rgb": ("overhead",)})`.
"""

from typing import Any

import numpy as np

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, make_bool_mask

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

SO101 = Embodiment(
    "so101",
    cameras={
        "base_0_rgb": tuple(f"{p}{c}" for c in ("front", "top", "up") for p in ("", "observation.images.")),
        "left_wrist_0_rgb": ("wrist", "observation.images.wrist"),
        "right_wrist_0_rgb": ("side", "observation.images.side"),
    },
    state=tuple(Part((motor,), (f"{motor}.pos",)) for motor in MOTORS),
    action=tuple(Part((motor,), (f"{motor}.pos",)) for motor in MOTORS),
    steps=(DeltaActions(make_bool_mask(5, -1)),),
    fps=30.0,
)
ROBOTS = (SO101,)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as LeRobot's `robot.get_observation()` gives it, with a task."""
    rng = np.random.default_rng(seed)
    return {
        **{f"{motor}.pos": float(rng.uniform(0 if motor == "gripper" else -100, 100)) for motor in MOTORS},
        "front": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        "task": "stack the bricks",
    }
