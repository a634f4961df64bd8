"""A robot that can play, in one file: copy it, and put your drivers where this one draws and computes.

    selfalign play --robot examples/my_robot.py:make --out data/my_play --speed 0.5
    selfalign inspect --data data/my_play

It stands for an arm with two joints in a plane and a gripper, seen by one camera. Its servos lag, as real ones do, and
it feels when the tip is on the floor.
"""

import numpy as np
from PIL import Image, ImageDraw

from selfalign.robots.protocol import Axis, Box, Description, Reading

LENGTHS = 0.3, 0.25
"""Of the two links, metres."""
FLOOR = 0.02
"""Height of the tip at which the arm feels contact, metres."""


def points_of(joints: np.ndarray) -> np.ndarray:
    """Base, elbow and tip in metres [3, 3], for joint angles in radians; the arm moves in the plane y = 0."""
    angles = np.cumsum(joints)
    links = np.stack([np.cos(angles), np.zeros(2), np.sin(angles)], axis=1) * np.array(LENGTHS)[:, None]
    return np.vstack([np.zeros(3), np.cumsum(links, axis=0)])


class MyRobot:
    """Joint targets in, joint angles and a picture out."""

    description = Description(
        name="my_robot",
        hz=20.0,
        axes=(
            Axis("shoulder", 0.4, 1.4, speed=0.8),  # radians, radians a second
            Axis("elbow", -1.6, -0.3, speed=1.2),
            Axis("gripper", 0.0, 1.0, speed=float("inf"), toggles=True),  # 0 closed, 1 open
        ),
        state_names=("shoulder", "elbow", "gripper"),
        workspace=Box((0.1, -0.1, 0.05), (0.5, 0.1, 0.5)),  # metres
        tip_of=lambda position: points_of(position[:2])[-1],
    )

    def __init__(self) -> None:
        self.joints, self.target, self.gripper = np.array([0.9, -0.9]), np.array([0.9, -0.9]), 0.0

    def observe(self) -> dict[str, np.ndarray]:
        picture = Image.new("RGB", (128, 128), "white")
        pixels = [(20 + 180 * x, 110 - 180 * z) for x, _, z in points_of(self.joints)]
        ImageDraw.Draw(picture).line(pixels, fill="black" if self.gripper < 0.5 else "blue", width=6)
        state = np.append(self.joints, self.gripper).astype(np.float32)
        return {"observation.images.scene": np.asarray(picture), "observation.state": state}

    def measure(self) -> Reading:
        tip = points_of(self.joints)[-1]
        return Reading(np.append(self.joints, self.gripper), tip, contact=bool(tip[2] < FLOOR))

    def act(self, action: np.ndarray) -> None:
        self.target, self.gripper = action[:2], float(action[2])
        self.joints = self.joints + 0.6 * (self.target - self.joints)  # what a servo does in 50 ms

    def stop(self) -> None:
        self.target = self.joints

    def close(self) -> None:
        """Where the connection would be closed."""


def make() -> MyRobot:
    """What `selfalign play --robot examples/my_robot.py:make` calls."""
    return MyRobot()
