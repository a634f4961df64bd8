"""Recording play: one control loop for every robot, and a data set that holds what was finished."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.data.lerobot_writer import LeRobotWriter
from selfalign.data.schema import STATE
from selfalign.robots.interrupts import Interrupts, Postponed
from selfalign.robots.motion import CALM, Kind, RandomMotion, Tempo
from selfalign.robots.pace import Pace
from selfalign.robots.protocol import Description, Robot
from selfalign.robots.safety import Guard, SafetyStop

_SLOWING_STEPS = 100
"""Most control steps that coming to rest may take."""


class PlayRecorder:
    """Moves a robot and records what it saw and did.

    Args:
        robot: already connected.
        guard: what may be commanded.
        pace: when the next step is due.
    """

    def __init__(self, robot: Robot, guard: Guard, pace: Pace):
        self._robot, self._description, self._guard, self._pace = robot, robot.description, guard, pace
        self._shapes: dict[str, tuple[int, ...]] = {}

    def trajectories(
        self,
        count: int,
        length: int,
        motion: Literal[Kind, "both"] = "both",
        seed: int = 0,
        tempo: Tempo = CALM,
    ) -> Iterator[Episode]:
        """Random motion of the guard's axes, each trajectory as it is asked for, from where the one before came to
        rest.

        Args:
            count: how many; fewer are the beginning of more.
            length: control steps of each.
            motion: of `RandomMotion`; "both" takes turns.
            seed: draws the motion.
            tempo: how fast, within the axes' speeds.

        Raises:
            SafetyStop, ValueError: as `trajectory`.
        """
        kinds: tuple[Kind, ...] = ("waypoints", "babble") if motion == "both" else (motion,)
        axes, hz = self._guard.axes, self._description.hz
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            kind = kinds[i % len(kinds)]
            yield self.trajectory(RandomMotion(axes, hz, rng, kind, self._guard.allows, tempo), length)

    def trajectory(self, motion: RandomMotion, length: int) -> Episode:
        """Plays for `length` control steps, comes to rest, and returns what was recorded.

        Raises:
            SafetyStop: a limit was passed, or all motion held back. The robot was told to stop, as after any other
                error or a signal.
            ValueError: an observation that cannot be recorded.
        """
        with Postponed() as signals:
            try:
                with signals.heeded():
                    looks, actions = self._play(motion, length)
            finally:
                self._robot.stop()  # uninterrupted
        return self._episode(looks, np.stack(actions))

    def _play(self, motion: RandomMotion, length: int) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray]]:
        """What was seen and done in `length` control steps, after which the robot comes to rest."""
        looks, actions = [], []
        target = self._guard.begin(self._robot.measure())
        motion.begin(target)
        self._pace.begin()
        for _ in range(length):
            looks.append(self._look())
            action, target = self._step(target, motion.next(target))
            actions.append(action)
        if motion.refused and not self._guard.moved:
            raise SafetyStop(
                f"nothing moved in {length} steps, since every way would have led out of the workspace: move the tip "
                "farther inside by hand, or leave the axes less room outside of it"
            )
        for _ in range(_SLOWING_STEPS):
            if motion.resting:
                break
            _, target = self._step(target, motion.slow_down(target))
        return looks, actions

    def _step(self, before: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One control step toward a target; the action, and the target that it commanded."""
        self._guard.check(self._robot.measure())
        target = self._guard.limit(wanted)
        action = to_action(self._description, before, target)
        self._robot.act(action)
        self._pace.wait()
        return action, target

    def _look(self) -> dict[str, np.ndarray]:
        """An observation that can be recorded, with arrays of its own."""
        seen = {name: np.array(value) for name, value in self._robot.observe().items() if name != "task"}
        dims = len(self._description.state_names)
        cameras = [name for name in seen if name.startswith(IMAGE_PREFIX)]
        if not cameras or set(seen) != {*cameras, STATE}:
            raise ValueError(f"observe() must give {IMAGE_PREFIX}<camera> and {STATE}, it gave {', '.join(seen)}")
        for name in cameras:
            if seen[name].dtype != np.uint8 or seen[name].ndim != 3 or seen[name].shape[-1] != 3:
                raise ValueError(f"{name} must be uint8 [H, W, 3], got {seen[name].dtype} {list(seen[name].shape)}")
        if seen[STATE].shape != (dims,) or not np.isfinite(seen[STATE]).all():
            raise ValueError(f"{STATE} must be {dims} finite numbers, one for each of state_names, got {seen[STATE]}")
        shapes = {name: value.shape for name, value in seen.items()}
        if (self._shapes or shapes) != shapes:
            raise ValueError(f"observations changed their shapes from {self._shapes} to {shapes}")
        self._shapes = shapes
        return seen

    def _episode(self, looks: list[dict[str, np.ndarray]], actions: np.ndarray) -> Episode:
        columns = {name: np.stack([look[name] for look in looks]) for name in looks[0]}
        state = columns.pop(STATE).astype(np.float32)
        images = {name.removeprefix(IMAGE_PREFIX): frames for name, frames in columns.items()}
        return Episode(images, state, actions.astype(np.float32), fps=self._description.hz, is_play=True)


def to_action(description: Description, before: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What moves the target from `before` to `target`: it itself, or its displacement in steps, for each axis."""
    steps = np.array([np.nan if axis.step is None else axis.step for axis in description.axes])
    return np.where(np.isnan(steps), target, (target - before) / steps)


def write_play(
    out: Path,
    trajectories: Iterable[Episode],
    *,
    embodiment: Mapping[str, Any],
    fps: float,
    robot_type: str,
    names: Mapping[str, list[str]] | None = None,
    video: bool = False,
) -> None:
    """Writes trajectories as they are finished. If recording ends early, the data set holds those that were.

    Args:
        out: folder of the new data set.
        trajectories: recorded as they are asked for.
        embodiment: description of the robot; must have a `name`.
        fps, robot_type, names, video: those of `LeRobotWriter`.

    Raises:
        ValueError: something is at `out` already.
        KeyboardInterrupt, Exception: whatever ended the recording, after what was finished has been written.
    """
    ended_by: BaseException | None = None
    recording = iter(trajectories)
    with (
        Interrupts() as interrupts,
        LeRobotWriter(
            out, fps=fps, embodiments=[embodiment], robot_type=robot_type, names=names, video=video
        ) as writer,
    ):
        while ended_by is None:
            try:
                with interrupts.heeded():
                    episode = next(recording, None)
            except BaseException as error:
                if not len(writer):
                    raise
                ended_by = error
                continue
            if episode is None:
                break
            writer.add_episode(episode)
    if ended_by is not None:
        print(f"{out} holds the {len(writer)} trajectories that were finished")
        raise ended_by
