"""Tasks: words and back, what counts as done, and scenes in which it can be done."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from selfalign.sim.tasks import COLOURS, KINDS, SIDES, Task, offered, sample_scene, sample_task


@dataclass
class Table:
    """A world without physics."""

    tip: np.ndarray
    cubes: dict[str, np.ndarray] = field(default_factory=dict)
    gripper_opening: float = 1.0

    def cube_position(self, colour: str) -> np.ndarray:
        return self.cubes[colour]


ALL = [
    Task(kind, colour, side) for kind in KINDS for colour in COLOURS for side in (SIDES if kind == "push" else [None])
]


@pytest.mark.parametrize("task", ALL, ids=str)
def test_instructions_are_read_back(task):
    assert Task.parse(task.instruction) == task


def test_instructions_are_plain_english():
    assert str(Task("reach", "red")) == "reach the red cube"
    assert str(Task("push", "blue", "left")) == "push the blue cube to the left"
    assert str(Task("push", "blue", "forward")) == "push the blue cube forward"
    assert len({task.instruction for task in ALL}) == len(ALL)


@pytest.mark.parametrize(
    "words", ["", "dance", "lift the pink cube", "push the red cube", "reach the red cube to the left"]
)
def test_other_words_are_refused(words):
    with pytest.raises(ValueError):
        Task.parse(words)


def test_reach_is_done_near_the_point_above_the_cube():
    cube = np.array([0.05, 0.02, 0.02])
    for distance, done in ((0.0, True), (0.024, True), (0.026, False)):
        world = Table(cube + [distance, 0, 0.04], {"red": cube})
        assert Task("reach", "red").success(world, cube) is done


@pytest.mark.parametrize(
    ("side", "direction"), [("left", (0, 1)), ("right", (0, -1)), ("forward", (1, 0)), ("back", (-1, 0))]
)
def test_push_counts_in_its_direction_only(side, direction):
    start, task = np.array([0.0, 0.0, 0.02]), Task("push", "red", side)
    for other, sign in ((direction, 1), (direction[::-1], 0), (tuple(-d for d in direction), -1)):
        world = Table(np.zeros(3), {"red": start + 0.061 * np.array([*other, 0.0])})
        assert task.success(world, start) is (sign == 1)
    assert not task.success(Table(np.zeros(3), {"red": start + 0.059 * np.array([*direction, 0.0])}), start)


def test_lift_counts_height():
    start, task = np.array([0.0, 0.0, 0.02]), Task("lift", "red")
    assert task.success(Table(np.zeros(3), {"red": start + [0, 0, 0.051]}), start)
    assert not task.success(Table(np.zeros(3), {"red": start + [0.1, 0, 0.049]}), start)


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_leave_room(kind):
    rng = np.random.default_rng(0)
    colours, counts = set(), set()
    for _ in range(100):
        task = sample_task(rng, (kind,))
        scene = sample_scene(rng, task)
        colours.add(task.colour)
        counts.add(len(scene.cubes))
        assert task.colour in scene.cubes
        places = np.array([pose[:2] for pose in scene.cubes.values()])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert gaps.min() > 0.08
        assert np.abs(places).max() <= 0.12
        assert np.all(np.abs(scene.tip[:2]) <= 0.14) and 0.08 < scene.tip[2] < 0.25
    assert colours == set(COLOURS) and counts == {2, 3}


def test_a_pushed_cube_stays_on_its_table():
    rng = np.random.default_rng(1)
    for _ in range(100):
        task = sample_task(rng, ("push",))
        place = np.array(sample_scene(rng, task).cubes[task.colour][:2])
        assert np.abs(place + 0.1 * task.direction[:2]).max() <= 0.16


def test_what_is_offered():
    assert all(
        offered(kind, arm, "panda") for kind in KINDS for arm in ("panda", "ur5e", "iiwa", "kinova3", "xarm7", "jaco")
    )
    assert not offered("push", "ur5e", "robotiq85")
    assert offered("lift", "ur5e", "robotiq85")
