"""ALOHA (Trossen): two 6-joint arms with grippers, joint targets at 50 Hz, three or four cameras.

`aloha` is what openpi's base models were trained on (`adapt_to_pi`): the sign of three joints is turned, and grippers
are angles instead of ALOHA's linear openings. `aloha_sim` (gym-aloha) is the same with absolute targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, Numbers, Step, make_bool_mask

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
"""Shoulder and elbow turn the other way in the base models' data."""
GRIPPERS = [6, 13]

FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.05800
"""ALOHA's puppet gripper positions in metres, which its runtime maps to 0 and 1."""
ARM_LENGTH, HORN_RADIUS = 0.036, 0.022
"""Interbotix: the linkage from the motor's horn to the finger, metres."""
ANGLE_LOW, ANGLE_HIGH = 0.5476, 1.6296
"""Motor angles in radians that the base models' data map to 0 and 1 (encoder counts 2405 and 3110 of 4096)."""
JOINT_CLOSED, JOINT_OPEN = -0.6213, 1.4910
"""Motor angles in radians that ALOHA's commands map to 0 and 1."""


def gripper_to_angle(opening: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """A measured opening (0 closed, 1 open) -> the base models' number.

    With the linkage's arm a and horn r, a finger at l has the angle asin((r^2 + l^2 - a^2) / (2 r l)).
    """
    finger = FINGER_CLOSED + opening * (FINGER_OPEN - FINGER_CLOSED)
    sine = (HORN_RADIUS**2 + finger**2 - ARM_LENGTH**2) / (2 * HORN_RADIUS * finger)
    return (np.arcsin(np.clip(sine, -1, 1)) - ANGLE_LOW) / (ANGLE_HIGH - ANGLE_LOW)


def gripper_from_angle(value: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Undoes `gripper_to_angle`: the positive root of l^2 - 2 r l sin(angle) + r^2 - a^2 = 0."""
    sine = HORN_RADIUS * np.sin(ANGLE_LOW + value * (ANGLE_HIGH - ANGLE_LOW))
    finger = sine + np.sqrt(sine**2 - HORN_RADIUS**2 + ARM_LENGTH**2)
    return (finger - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)


def command_to_angle(value: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """A commanded gripper -> the base models' number, which for actions is radians above `ANGLE_LOW`, not scaled."""
    return JOINT_CLOSED + value * (JOINT_OPEN - JOINT_CLOSED) - ANGLE_LOW


def command_from_angle(value: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Undoes `command_to_angle`."""
    return (value + ANGLE_LOW - JOINT_CLOSED) / (JOINT_OPEN - JOINT_CLOSED)


@dataclass(frozen=True)
class AdaptToPi:
    """ALOHA's joints and grippers -> those of openpi's base models."""

    reads_state: bool = False
    displaces: tuple[bool, ...] = ()

    def forward(self, numbers: Numbers) -> Numbers:
        actions = numbers.actions
        return Numbers(
            _map_grippers(_turn(numbers.state), gripper_to_angle),
            None if actions is None else _map_grippers(_turn(actions), command_to_angle),
        )

    def inverse(self, numbers: Numbers) -> Numbers:
        actions = numbers.actions
        return Numbers(
            _turn(_map_grippers(numbers.state, gripper_from_angle)),
            None if actions is None else _turn(_map_grippers(actions, command_from_angle)),
        )


def _turn(values: np.ndarray) -> np.ndarray:
    return values * SIGNS.astype(values.dtype)


def _map_grippers(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    result = values.copy()
    result[..., GRIPPERS] = convert(values[..., GRIPPERS])
    return result


def _aloha(name: str, steps: tuple[Step, ...]) -> Embodiment:
    names = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
    return Embodiment(
        name,
        cameras={
            "base_0_rgb": ("images/cam_high", "observation.images.cam_high", "observation.images.top"),
            "left_wrist_0_rgb": ("images/cam_left_wrist", "observation.images.cam_left_wrist"),
            "right_wrist_0_rgb": ("images/cam_right_wrist", "observation.images.cam_right_wrist"),
        },
        state=(Part(names, ("state",)),),
        action=(Part(names, ("actions",)),),
        steps=steps,
        unused=("images/cam_low", "observation.images.cam_low"),
        fps=50.0,
        asset_id="trossen",
    )


ALOHA = _aloha("aloha", (AdaptToPi(), DeltaActions(make_bool_mask(6, -1, 6, -1))))
ALOHA_SIM = _aloha("aloha_sim", (AdaptToPi(),))
ROBOTS = (ALOHA, ALOHA_SIM)


def make_example(seed: int = 0) -> dict[str, Any]:
    """An observation as ALOHA's runtime sends it (pictures channel-first)."""
    rng = np.random.default_rng(seed)
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {
        "state": rng.uniform(0, 1, 14),
        "images": {camera: rng.integers(0, 256, (3, 224, 224), dtype=np.uint8) for camera in cameras},
        "prompt": "fold the towel",
    }
