"""`SimulatedRobot`: a simulated body as a `Robot`, so that what moves and guards a real one can be tried on it.

selfalign play --robot selfalign.sim.playing:panda --out data/panda_play
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.robots.motion import BRISK, CALM
from selfalign.robots.pace import NoPace
from selfalign.robots.protocol import Axis, Box, Description, Reading
from selfalign.robots.record import PlayRecorder
from selfalign.robots.safety import Guard
from selfalign.sim.bodies import BodySpec
from selfalign.sim.control import JOINT_STEP, TIP_STEP, Controller
from selfalign.sim.engine import CONTROL_HZ, WORKSPACE_HIGH, WORKSPACE_LOW, Simulation
from selfalign.sim.render import IMAGE_SIZE
from selfalign.sim.tasks import sample_scene, sample_task

_SPEED, _FULL_SPEED = 0.7, 1.0
"""Part of the fastest action that the axes use: so that the arm follows closely, or all of it."""
_JOINT_ROOM = 0.6
"""Radians that joints may be from their home position, and the tip in the workspace still."""


class SimulatedRobot:
    """A body at its table, in its own numbers.

    Args:
        body: which embodiment.
        image_size: pixels.
        seed: draws the objects on the table.
        sim: a simulation of the body's robot to use again; None: an own one.
        speed: part of the fastest action that the axes use.
    """

    def __init__(
        self,
        body: BodySpec,
        image_size: int = IMAGE_SIZE,
        seed: int = 0,
        sim: Simulation | None = None,
        speed: float = _SPEED,
    ):
        self.body, self._image_size, self._speed = body, image_size, speed
        self._sim = Simulation(body.robot) if sim is None else sim
        self._sim.set_appearance(body.appearance)
        self._sim.mount_wrist(body.wrist)
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, sample_task(rng))
        self._sim.reset(np.array(scene.tip), scene.cubes, rng)
        self._controller = Controller(self._sim)
        self.description = self._described()

    def observe(self) -> Mapping[str, Any]:
        sim, body = self._sim, self.body
        pictures = {IMAGE_PREFIX + name: sim.render(view, self._image_size) for name, view in body.cameras.items()}
        state = body.state_space.encode(sim.tip, sim.joints, sim.gripper_opening)
        return {**pictures, "observation.state": state}

    def measure(self) -> Reading:
        sim, space = self._sim, self.body.action_space
        axes = space.to_body(sim.joints if space.is_joint else sim.tip)
        return Reading(np.append(axes, 1 - 2 * sim.gripper_opening), sim.tip)

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        self.body.action_space.execute(self._controller, action)

    def stop(self) -> None:
        """The commanded target is where it is; time stands still meanwhile."""
        self._controller.reset()

    def close(self) -> None:
        self._sim.close()

    def _described(self) -> Description:
        space, sim = self.body.action_space, self._sim
        low, high = space.bounds(*self._room())
        step = JOINT_STEP if space.is_joint else TIP_STEP
        speed = self._speed * step * CONTROL_HZ * self._strides(len(low))
        axes = [
            Axis(
                f"joint_{i}" if space.is_joint else "xyz"[i],
                float(low[i]),
                float(high[i]),
                speed=float(speed[i]),
                step=step if space.is_delta else None,
            )
            for i in range(len(low))
        ]
        states = [f"joint_{i}" for i in range(sim.robot.num_joints)] if self.body.state_space.kind == "joint" else "xyz"
        return Description(
            self.body.name,
            CONTROL_HZ,
            (*axes, Axis("gripper", -1.0, 1.0, speed=float("inf"), toggles=True)),
            (*states, "opening"),
            workspace=Box(tuple(WORKSPACE_LOW.tolist()), tuple(WORKSPACE_HIGH.tolist())),
            tip_of=self._tip_of,
            real_time=False,
        )

    def _room(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the axes may be, in canonical numbers."""
        if not self.body.action_space.is_joint:
            return WORKSPACE_LOW, WORKSPACE_HIGH
        low, high = self._sim.joint_limits
        return np.maximum(low, self._sim.home - _JOINT_ROOM), np.minimum(high, self._sim.home + _JOINT_ROOM)

    def _strides(self, dims: int) -> np.ndarray:
        """How far every axis may go at once, so that no canonical number changes by more than 1."""
        space, zero = self.body.action_space, np.zeros(dims)
        moved = np.array([space.to_canonical(unit) - space.to_canonical(zero) for unit in np.eye(dims)])
        strides = 1 / np.linalg.norm(moved, axis=1)
        return strides / (strides @ np.abs(moved)).max()

    def _tip_of(self, position: Float[np.ndarray, " A"]) -> Float[np.ndarray, "3"]:
        space = self.body.action_space
        canonical = space.to_canonical(position[:-1])
        return self._sim.kinematics.tip(canonical) if space.is_joint else canonical


def play_by_axes(
    body: BodySpec,
    n: int,
    length: int,
    seed: int = 0,
    *,
    image_size: int = IMAGE_SIZE,
    sim: Simulation | None = None,
    brisk: bool = False,
) -> Iterator[Episode]:
    """Play as `selfalign play --robot` records it of a real robot, each trajectory as it is asked for: the body moves
    the axes of its own actions between random places and one by one, within their limits, at the same table all the
    while.

    Args:
        body: which embodiment.
        n: trajectories.
        length: frames of each.
        seed: draws the motion, and the objects on the table.
        image_size: pixels.
        sim: a simulation of the body's robot to use again.
        brisk: in that tempo, and at the speed of the fastest action.

    Raises:
        SafetyStop: the body could not follow, as a robot that something holds.
    """
    robot = SimulatedRobot(body, image_size, seed, sim, speed=_FULL_SPEED if brisk else _SPEED)
    recorder = PlayRecorder(robot, Guard(robot.description), NoPace(robot.description.hz))
    return recorder.trajectories(n, length, seed=seed, tempo=BRISK if brisk else CALM)


def panda() -> SimulatedRobot:
    """A Panda arm moved by its tip."""
    return SimulatedRobot(BodySpec())
