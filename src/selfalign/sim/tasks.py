"""What the simulated robots are asked to do: reach, push and lift, in words and in numbers.

The workspace frame has its origin on the table surface at the workspace centre; x points forward (away from the robot),
y to the robot's left, z up; metres. "Forward", "back", "left" and "right" are the robot's own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float

Kind = Literal["reach", "push", "lift"]
Side = Literal["left", "right", "forward", "back"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS = ("red", "green", "blue", "yellow")
SIDES: dict[Side, tuple[float, float]] = {"left": (0, 1), "right": (0, -1), "forward": (1, 0), "back": (-1, 0)}
"""Unit vectors in the table plane."""

EPISODE_STEPS: dict[Kind, int] = {"reach": 50, "push": 80, "lift": 80}
CUBE_SIZE = 0.04
HOVER = 0.04
"""Reach: height of the target point above the cube's centre, which is 2 cm above its top."""
REACH_TOLERANCE = 0.025
PUSH_DISTANCE = 0.06
LIFT_HEIGHT = 0.05

TABLE_RADIUS = 0.12
"""Cubes start within +-12 cm of the workspace centre."""
CUBE_GAP = 0.085
"""Least distance between cube centres: a gripper's fingers pass between two cubes."""

NOT_OFFERED: dict[tuple[str, str], frozenset[Kind]] = {
    ("ur5e", "robotiq85"): frozenset({"push"}),
    ("xarm7", "xarm7"): frozenset({"push"}),
    ("jaco", "jaco"): frozenset({"lift"}),
}
"""Tasks by robot (arm, gripper) at which the expert does not succeed in 95 of 100 episodes: closed, the fingertips of
Robotiq's and xArm's grippers draw back above the cube, and the Jaco's three fingers lose it. See
benchmarks/results/experts.json."""


class World(Protocol):
    """What tasks and experts may know of the simulation (`selfalign.sim.engine.Simulation`)."""

    @property
    def tip(self) -> Float[np.ndarray, "3"]: ...

    @property
    def gripper_opening(self) -> float: ...

    def cube_position(self, colour: str) -> Float[np.ndarray, "3"]: ...


@dataclass(frozen=True)
class Task:
    """One instruction.

    Raises:
        ValueError: an unknown kind, colour or side; a push without a side; a side without a push.
    """

    kind: Kind
    colour: str
    side: Side | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown task kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.colour not in COLOURS:
            raise ValueError(f"unknown cube colour {self.colour!r}; known: {', '.join(COLOURS)}")
        if (self.kind == "push") != (self.side is not None) or (self.side is not None and self.side not in SIDES):
            raise ValueError(
                f"push needs a side ({', '.join(SIDES)}) and only push does; got {self.kind}, {self.side!r}"
            )

    def __str__(self) -> str:
        return self.instruction

    @property
    def instruction(self) -> str:
        """The task in words, as the policy reads it."""
        if self.side is None:
            return f"{self.kind} the {self.colour} cube"
        direction = {"left": "to the left", "right": "to the right"}.get(self.side, self.side)
        return f"push the {self.colour} cube {direction}"

    @classmethod
    def parse(cls, instruction: str) -> "Task":
        """The task of an instruction.

        Raises:
            ValueError: words that no task has.
        """
        match = re.fullmatch(r"(\w+) the (\w+) cube(?: (?:to the )?(\w+))?", instruction.strip())
        if match is None:
            raise ValueError(f"cannot read the instruction {instruction!r}; expected e.g. 'reach the red cube'")
        return cls(*match.groups())  # type: ignore[arg-type]

    @property
    def steps(self) -> int:
        """Length of an episode at 20 Hz."""
        return EPISODE_STEPS[self.kind]

    @property
    def direction(self) -> Float[np.ndarray, "3"]:
        """Unit vector in which a push goes."""
        return np.array([*SIDES[self.side], 0.0]) if self.side else np.zeros(3)

    def progress(self, world: World, start: Float[np.ndarray, "3"]) -> float:
        """Metres towards success: minus the distance to the reach target, the push's length or the lift's height."""
        cube = world.cube_position(self.colour)
        if self.kind == "reach":
            return -float(np.linalg.norm(world.tip - cube - [0, 0, HOVER]))
        if self.kind == "push":
            return float((cube - start) @ self.direction)
        return float(cube[2] - start[2])

    def success(self, world: World, start: Float[np.ndarray, "3"]) -> bool:
        """Whether the task is done now; `start` is where the cube was when the episode began."""
        needed = {"reach": -REACH_TOLERANCE, "push": PUSH_DISTANCE, "lift": LIFT_HEIGHT}[self.kind]
        return self.progress(world, start) >= needed


@dataclass(frozen=True)
class Scene:
    """How an episode begins."""

    task: Task
    tip: tuple[float, float, float]
    """Where the gripper starts."""
    cubes: Mapping[str, tuple[float, float, float]]
    """Colour to (x, y, yaw)."""


def offered(kind: Kind, arm: str, gripper: str) -> bool:
    """Whether the task is offered for a robot: the expert succeeds in at least 95 of 100 episodes."""
    return kind not in NOT_OFFERED.get((arm, gripper), frozenset())


def sample_task(rng: np.random.Generator, kinds: tuple[Kind, ...] = ("reach",)) -> Task:
    """A task with kind, colour and side drawn uniformly."""
    kind = kinds[rng.integers(len(kinds))]
    side = list(SIDES)[rng.integers(len(SIDES))] if kind == "push" else None
    return Task(kind, COLOURS[rng.integers(len(COLOURS))], side)


def sample_scene(rng: np.random.Generator, task: Task, cubes: int | None = None) -> Scene:
    """A scene with 2-3 cubes (or as many as given), the task's among them, and a gripper somewhere above the table."""
    count = int(rng.integers(2, 4)) if cubes is None else cubes
    others = [colour for colour in COLOURS if colour != task.colour]
    colours = [task.colour, *rng.permutation(others)[: count - 1]]
    while True:
        places = _places(rng, task, count)
        if places is not None:
            break
    poses = {
        str(colour): (float(x), float(y), float(rng.uniform(-np.pi / 4, np.pi / 4)))
        for colour, (x, y) in zip(colours, places, strict=True)
    }
    tip = (*rng.uniform(-0.14, 0.14, size=2), rng.uniform(0.09, 0.24))
    return Scene(task, tuple(float(value) for value in tip), poses)  # type: ignore[arg-type]


def _places(rng: np.random.Generator, task: Task, count: int) -> np.ndarray | None:
    """Centres [count, 2], the task's cube first; None where this draw does not fit."""
    places = rng.uniform(-TABLE_RADIUS, TABLE_RADIUS, size=(count, 2))
    if task.side is None:
        path = places[:1]
    else:
        # The whole corridor from the finger behind the cube to the cube's end stays on the table and free of others.
        direction = np.array(SIDES[task.side], dtype=float)
        path = places[0] + direction * np.linspace(-0.05, 0.10, 7)[:, None]
        if np.abs(path).max() > 0.16:
            return None
    clearance = np.linalg.norm(places[None, 1:] - path[:, None], axis=-1)
    between = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(count)
    return places if clearance.min(initial=1.0) > CUBE_GAP and between.min() > CUBE_GAP else None
