"""Made-up recordings: a square that moves in pictures, for trying out a training without data or a simulator."""

from pathlib import Path

import numpy as np

from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.schema import ACTION, STATE

FRAMES = 24
"""Of each episode."""


def write_fake(root: str | Path, *, rigs: int = 4, episodes: int = 4, image_size: int = 32, seed: int = 0) -> Path:
    """Write a LeRobot data set of so many rigs, each with so many episodes of play and of demonstrations.

    State `[4]` is a place in the unit cube and a gripper; an action `[4]` is the place's next step and the gripper. A
    square in the picture shows the place; rigs differ in colour and in where their camera looks. Demonstrations go to
    the middle.

    Raises:
        ValueError: there is something at `root`.
    """
    rng = np.random.default_rng(seed)
    bodies = [{"name": f"fake-{i}"} for i in range(rigs)]
    names = {column: ["x", "y", "z", "gripper"] for column in (STATE, ACTION)}
    with LeRobotWriter(root, embodiments=bodies, robot_type="fake", names=names) as writer:
        for rig in range(rigs):
            colour, look = rng.integers(100, 255, size=3), rng.uniform(-0.2, 0.2, size=2)
            for i in range(2 * episodes):
                is_play = i < episodes
                state, action = _play(rng) if is_play else _demonstration(rng)
                images = _pictures(state, colour, look, image_size)
                task = "" if is_play else "reach the red cube"
                writer.add_episode(
                    Episode({"scene": images}, state, action, task, embodiment_index=rig, is_play=is_play)
                )
    return Path(root)


def _play(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    steps = np.cumsum(rng.normal(scale=0.02, size=(FRAMES, 3)), axis=0)
    return _episode(rng, steps - steps.mean(0))


def _demonstration(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    way = 0.5 - rng.uniform(0.1, 0.9, size=3)
    return _episode(rng, np.repeat(way[None] / FRAMES, FRAMES, axis=0), 0.5 - way)


def _episode(
    rng: np.random.Generator, steps: np.ndarray, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    start = rng.uniform(0.3, 0.7, size=3) if start is None else start
    places = start + np.cumsum(steps, axis=0) - steps
    gripper = np.sign(np.sin(np.arange(FRAMES) / 4 + rng.uniform(0, 6)))[:, None]
    state, action = np.concatenate([places, gripper], axis=1), np.concatenate([steps, gripper], axis=1)
    return state.astype(np.float32), action.astype(np.float32)


def _pictures(state: np.ndarray, colour: np.ndarray, look: np.ndarray, size: int) -> np.ndarray:
    images, half = np.full((len(state), size, size, 3), 30, np.uint8), max(1, size // 12)
    for image, (x, y) in zip(images, np.clip((state[:, :2] + look) * size, half, size - half).astype(int), strict=True):
        image[y - half : y + half, x - half : x + half] = colour
    return images
