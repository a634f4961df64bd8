"""`selfalign play --robot FILE:FUNCTION`: a robot of yours plays, within limits, and its play becomes a data set."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfalign.data.episodes import Episode
from selfalign.data.lerobot_writer import check_free
from selfalign.data.schema import ACTION, STATE
from selfalign.data.transforms import resize_with_pad
from selfalign.embodiments import load_file
from selfalign.robots.motion import BRISK, CALM, narrowed
from selfalign.robots.pace import NoPace, Pace
from selfalign.robots.protocol import Description, Robot
from selfalign.robots.record import PlayRecorder, write_play
from selfalign.robots.safety import Guard
from selfalign.workers import track

_METHODS = ("observe", "measure", "act", "stop", "close")
_LATE = 0.05
"""Share of late steps above which the control rate is not what the data set says."""


@dataclass(frozen=True)
class RobotPlayConfig:
    """Let a robot of yours play: smooth random motion within its limits. Writes a LeRobot data set."""

    robot: str
    """What makes it: `my_robot.py:make` or `my_package.my_module:make`, a function without arguments that returns a
    `Robot` (docs/play.md)."""
    out: Path
    """Folder of the new data set."""
    motion: Literal["waypoints", "babble", "both"] = "both"
    """Axes move together between random waypoints, or each by itself; `both`: by turns."""
    tempo: Literal["calm", "brisk"] = "calm"
    """calm: 0.4 s from rest to full speed, and places are gone to at a fifth of it or more; brisk: 0.1 s, and four
    fifths. The policy will act about as fast as the robot plays (docs/play.md)."""
    trajectories: int = 20
    length: int = 200
    """Frames of each trajectory; must be longer than the model's chunk of actions."""
    speed: float = 1.0
    """Part of each axis's speed limit that is used. Begin with 0.2."""
    reach: float = 1.0
    """Part of each axis's range that is used, around where it stands at the start. Begin with 0.2."""
    stop_on_contact: bool = True
    """Stop when the robot reports contact."""
    delay: float = 3.0
    """Seconds between the announcement and the first motion; simulators do not wait."""
    image_size: int | None = None
    """Side of the square that pictures are resized to, with padding; None: they keep their size."""
    video: bool = False
    """Store cameras as video, which is smaller and not exact."""
    seed: int = 0
    """Draws the motion."""

    def __post_init__(self) -> None:
        if self.trajectories < 1 or self.length < 2:
            raise ValueError(f"play needs a trajectory of 2 frames at least, got {self.trajectories} of {self.length}")


def run(config: RobotPlayConfig) -> None:
    """Moves the robot, writes the data set, and says how well the control rate was kept.

    Raises:
        SafetyStop: a limit was passed; what was finished before is at `out`.
        FileNotFoundError, ImportError, ValueError: no such robot, one that does not speak the protocol, or `out` holds
            something.
    """
    check_free(config.out)  # before anything moves
    with closing(load_robot(config.robot)) as robot:
        description = robot.description
        axes = narrowed(description.axes, robot.measure().position, config.reach, config.speed)
        guard = Guard(description, axes, stop_on_contact=config.stop_on_contact)
        pace = (Pace if description.real_time else NoPace)(description.hz)
        print(announcement(replace(description, axes=axes), config))
        if description.real_time:
            time.sleep(config.delay)
        try:
            write_play(
                config.out,
                _trajectories(PlayRecorder(robot, guard, pace), config),
                embodiment=description.to_dict(),
                fps=description.hz,
                robot_type=description.name,
                names={STATE: list(description.state_names), ACTION: [axis.name for axis in axes]},
                video=config.video,
            )
        finally:
            _report(pace, guard)
    print(f"{config.trajectories} trajectories of {description.name} in {config.out}")


def load_robot(name: str) -> Robot:
    """The robot that a function makes.

    Args:
        name: `path/to/file.py:function` or `package.module:function`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no function is named, there is none of that name, or what it returns is no robot.
        ImportError: no such module.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise ValueError(f"name the function that makes the robot, as in my_robot.py:make; got {name!r}")
    if place.endswith(".py"):
        module = load_file(Path(place))
    else:
        if "" not in sys.path:
            sys.path.append("")  # a module of the folder that the user stands in
        module = importlib.import_module(place)
    make: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{place} has no function {function!r}")
    robot = make()
    missing = [method for method in _METHODS if not callable(getattr(robot, method, None))]
    if missing or not isinstance(getattr(robot, "description", None), Description):
        lacks = ", ".join(missing) or "a description (selfalign.robots.protocol.Description)"
        raise ValueError(f"{name} returned a {type(robot).__name__}, which lacks {lacks}; see docs/play.md")
    return robot


def announcement(description: Description, config: RobotPlayConfig) -> str:
    """What is about to move, and how far."""
    seconds = config.trajectories * config.length / description.hz
    amount = f"{config.trajectories} trajectories of {config.length} frames, {seconds:.0f} s in all"
    lines = [f"{description.name} plays {amount}, at {description.hz:g} Hz:"]
    for axis in description.axes:
        pace = "at once" if np.isinf(axis.speed) else f"at most {axis.speed:.4g} a second"
        between = f"either {axis.low:.4g} or {axis.high:.4g}" if axis.toggles else f"{axis.low:.4g} to {axis.high:.4g}"
        lines.append(f"  {axis.name}: {between}, {pace}")
    box = description.workspace
    lines.append("  the tip is not watched" if box is None else f"  the tip stays within {box.low} to {box.high} m")
    if description.real_time:
        lines.append(f"It moves in {config.delay:g} s. Keep a hand at the emergency stop; Ctrl-C stops too.")
    return "\n".join(lines)


def _trajectories(recorder: PlayRecorder, config: RobotPlayConfig) -> Iterator[Episode]:
    told = config.trajectories, config.length, config.motion, config.seed
    recording = recorder.trajectories(*told, BRISK if config.tempo == "brisk" else CALM)
    for episode in track(recording, description="playing", total=config.trajectories):
        if (size := config.image_size) is not None:
            small = {camera: resize_with_pad(frames, size, size) for camera, frames in episode.images.items()}
            episode = replace(episode, images=small)
        yield episode


def _report(pace: Pace, guard: Guard) -> None:
    print(f"control: {pace.report()}")
    if pace.late > _LATE * pace.steps:
        print(
            "The control rate was not kept: lower the description's hz, or make observe() faster. Play at another rate "
            "than the data set says teaches a model a robot that does not exist."
        )
    if guard.held_back:
        print("held back: " + ", ".join(f"{limit} {count} times" for limit, count in guard.held_back.most_common()))
