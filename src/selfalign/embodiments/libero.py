"""LIBERO: a simulated Panda with end-effector actions at 10 Hz, one scene and one wrist camera.

Its actions are displacements already. `libero_extra_delta` subtracts the state all the same, because openpi's pi0 (not
pi0.5) was fine-tuned so; it makes sense for those checkpoints only.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, make_bool_mask

POSE = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z")

LIBERO = Embodiment(
    "libero",
    cameras={
        "base_0_rgb": ("observation/image", "image", "observation.images.image"),
        "left_wrist_0_rgb": (
            "observation/wrist_image",
            "wrist_image",
            "observation.images.wrist_image",
            "observation.images.image2",
        ),
    },
    state=(Part((*POSE, "left_finger", "right_finger"), ("observation/state", "state")),),
    action=(Part((*POSE, "gripper"), ("actions",)),),
    displaced=make_bool_mask(6, -1),
    fps=10.0,
)
EXTRA_DELTA = replace(LIBERO, name="libero_extra_delta", steps=(DeltaActions(make_bool_mask(6, -1)),))
ROBOTS = (LIBERO, EXTRA_DELTA)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as LIBERO's evaluation sends it."""
    rng = np.random.default_rng(seed)
    return {
        "observation/state": rng.uniform(-1, 1, 8),
        "observation/image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "prompt": "put the bowl on the plate",
    }
