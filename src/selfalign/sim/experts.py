"""Scripted experts: they read the simulator's state and answer with canonical end-effector deltas.

Each is a feedback law of what it sees now, not a plan that is played back, so a disturbed or noisy run recovers by
itself, and a policy that imitates it needs no memory either. `selfalign bench experts` measures them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from selfalign.sim.control import TIP_STEP, Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.robots import RobotSpec
from selfalign.sim.tasks import HOVER, PUSH_DISTANCE, Kind, Task, World, sample_scene, sample_task

Action = Float[np.ndarray, "4"]
Expert = Callable[[World], Action]
"""Observes a world and returns [dx, dy, dz, gripper] in [-1, 1]."""

OPEN, CLOSE = -1.0, 1.0
GAIN = 0.5
"""Part of the remaining distance that one step covers: about the most that does not overshoot behind a servo's lag."""


def toward(world: World, goal: Float[np.ndarray, "3"], gripper: float, speed: float = 1.0) -> Action:
    """A delta straight toward `goal`, at most `speed` long, slowing down near it."""
    delta = GAIN * (goal - world.tip) / TIP_STEP
    length = float(np.linalg.norm(delta))
    if length > speed:
        delta = delta * (speed / length)
    return np.array([*delta, gripper])


@dataclass
class ReachExpert:
    """Goes to the hover point above the cube, gripper open."""

    task: Task

    def __call__(self, world: World) -> Action:
        return toward(world, world.cube_position(self.task.colour) + [0, 0, HOVER], OPEN)


@dataclass
class PushExpert:
    """Goes behind the cube with closed fingers, down, and through, correcting sideways as it goes."""

    task: Task
    start: Float[np.ndarray, "3"]
    """Where the cube was when the episode began."""
    behind: float = 0.055
    """Metres from the cube's centre to where the fingers come down."""
    safe_height: float = 0.09
    push_height: float = 0.025
    goal: float = PUSH_DISTANCE + 0.015

    def __call__(self, world: World) -> Action:
        tip, cube, forward = world.tip, world.cube_position(self.task.colour), self.task.direction
        if (cube - self.start) @ forward >= self.goal:
            return toward(world, np.array([*tip[:2], self.push_height]), CLOSE)
        relative = tip - cube
        along = float(relative @ forward)
        sideways = relative - along * forward
        sideways[2] = 0
        aside = float(np.linalg.norm(sideways))
        if tip[2] < 0.05 and aside < 0.012 and -0.08 < along < 0:
            goal = cube + 0.04 * forward
            return toward(world, np.array([*(goal - 0.5 * sideways)[:2], self.push_height]), CLOSE, speed=0.5)
        place = cube - self.behind * forward
        return approach_from_above(world, place, self.push_height, self.safe_height, CLOSE)


@dataclass
class LiftExpert:
    """Comes down over the cube with open fingers, closes them, waits until they hold, goes up."""

    task: Task
    start: Float[np.ndarray, "3"]
    safe_height: float = 0.09
    lift_to: float = 0.12
    patience: int = 14
    """Steps after which closing fingers are trusted to hold, even if they still tremble."""
    closing: int = 0
    lifting: bool = False
    last_opening: float = 1.0

    def __call__(self, world: World) -> Action:
        cube, tip, opening = world.cube_position(self.task.colour), world.tip, world.gripper_opening
        offset = tip - cube
        # Fingers that have begun to close may shift the cube a little without letting it go.
        slack = 0.03 if self.closing else 0.015
        if float(np.linalg.norm(offset[:2])) > slack or abs(offset[2]) > slack:
            self.closing, self.lifting = 0, False
            return approach_from_above(world, cube, float(cube[2]), float(cube[2]) + 0.07, OPEN)
        stalled = opening < 0.9 and abs(opening - self.last_opening) < 0.01
        self.last_opening, self.closing = opening, self.closing + 1
        self.lifting = self.lifting or (stalled and self.closing > 2) or self.closing > self.patience
        goal = np.array([*tip[:2], self.lift_to]) if self.lifting else tip
        return toward(world, goal, CLOSE, speed=0.6)


def approach_from_above(
    world: World, place: Float[np.ndarray, "3"], low: float, high: float, gripper: float, funnel: float = 0.01
) -> Action:
    """Up where needed, across at the height `high`, then down onto `place` to the height `low`."""
    tip = world.tip
    aside = float(np.linalg.norm((tip - place)[:2]))
    if aside < funnel:
        return toward(world, np.array([*place[:2], low]), gripper, speed=0.7)
    # Inside a cone above the place it may descend while it still centres; outside of it, it keeps clear of the cubes.
    height = high if aside > 0.03 else max(low + 2.0 * (aside - funnel) + 0.02, min(tip[2], high))
    if tip[2] < high - 0.02 and aside > 0.03:
        return toward(world, np.array([*tip[:2], high + 0.02]), gripper)
    return toward(world, np.array([*place[:2], height]), gripper)


def make_expert(task: Task, world: World) -> Expert:
    """The expert of a task in the world as it is when the episode begins."""
    if task.kind == "reach":
        return ReachExpert(task)
    start = world.cube_position(task.colour).copy()
    return PushExpert(task, start) if task.kind == "push" else LiftExpert(task, start)


@dataclass
class Noise:
    """Disturbs what is executed, never the label: demonstrations then also show how to come back.

    Disturbances come in bursts, because a single noisy step is gone before the arm has moved.
    """

    rng: np.random.Generator
    start_probability: float = 0.06
    keep_probability: float = 0.75
    scale: float = 0.6
    _burst: np.ndarray | None = None

    def __call__(self, action: Action) -> Action:
        """The action to execute for an expert's action."""
        if self._burst is None:
            if self.rng.random() < self.start_probability:
                self._burst = self.rng.normal(scale=self.scale, size=3)
        elif self.rng.random() > self.keep_probability:
            self._burst = None
        if self._burst is None:
            return action
        return np.array([*np.clip(action[:3] + self._burst, -1, 1), action[3]])


@dataclass(frozen=True)
class Score:
    """How often an expert succeeded."""

    robot: str
    task: Kind
    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes


def evaluate(robot: RobotSpec, kind: Kind, episodes: int, seed: int = 0, *, sim: Simulation | None = None) -> Score:
    """Runs the expert without noise, each episode for its full length; success counts at the end only.

    Args:
        robot: arm and gripper.
        kind: task kind; colours, sides and scenes are drawn.
        episodes: how many.
        seed: other seeds give other scenes.
        sim: a simulation of the robot to use again.
    """
    sim = sim or Simulation(robot)
    successes = 0
    for index in range(episodes):
        rng = np.random.default_rng([seed, 7, index])
        task = sample_task(rng, (kind,))
        scene = sample_scene(rng, task)
        sim.reset(np.array(scene.tip), scene.cubes, rng)
        controller, expert, start = Controller(sim), make_expert(task, sim), sim.cube_position(task.colour)
        for _ in range(task.steps):
            action = expert(sim)
            controller.move_tip(action[:3], action[3])
        successes += task.success(sim, start)
    return Score(robot.name, kind, successes, episodes)
