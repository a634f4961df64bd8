"""A robot without hardware: an axis that is commanded by targets, one by displacements, and a gripper."""

from dataclasses import replace

import numpy as np

from selfalign.robots.protocol import Axis, Box, Description, Reading

AXES = (
    Axis("lift", -1.0, 1.0, speed=2.0),
    Axis("turn", 10.0, 30.0, speed=20.0, step=0.5),
    Axis("gripper", 0.0, 1.0, speed=float("inf"), toggles=True),
)
DESCRIPTION = Description("fake", 20.0, AXES, ("lift", "turn"), real_time=False)


class FakeRobot:
    """Follows at once. `readings` replaces what it measures, `on_step` is called at each step with its number."""

    def __init__(self, on_step=lambda step: None, box: Box | None = None, readings=None):
        self.description = replace(DESCRIPTION, workspace=box, tip_of=None if box is None else self.tip)
        self.position, self.actions, self.calls = np.array([0.0, 20.0, 0.0]), [], []
        self._on_step, self._readings = on_step, readings or {}

    @staticmethod
    def tip(position):
        return np.array([position[0], 0.0, 0.0])

    def observe(self):
        level = np.uint8(100 + 100 * self.position[0])
        return {
            "observation.images.scene": np.full((8, 8, 3), level, np.uint8),
            "observation.state": self.position[:2].copy(),
        }

    def measure(self):
        return self._readings.get(len(self.actions), Reading(self.position.copy()))

    def act(self, action):
        self.calls.append("act")
        self.actions.append(np.array(action))
        self.position = np.array([action[0], self.position[1] + 0.5 * action[1], action[2]])
        self._on_step(len(self.actions))

    def stop(self):
        self.calls.append("stop")

    def close(self):
        self.calls.append("close")
