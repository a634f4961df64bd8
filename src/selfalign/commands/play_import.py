"""`selfalign play import`: recordings that a robot has already become play, under the model's names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfalign import embodiments
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import check_alike, check_finite
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.statistics import dim_names
from selfalign.data.transforms import resize_with_pad
from selfalign.workers import track


@dataclass(frozen=True)
class ImportConfig:
    """Take recordings of a robot as its play: words are dropped, cameras renamed, one new data set is written."""

    source: str
    """The recordings: lerobot:PATH[,PATH...], rlds:PATH@HZ, or a path alone."""
    out: Path
    """Folder of the new LeRobot data set."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Pairs of a camera of the model and the recordings' camera that shows it, for instance `scene front`; others are
    left out. Empty: the robot's, or all as they are called."""
    robot: str | None = None
    """Name of the robot, or path of its file, which knows what its cameras are called. Numbers stay the robot's own:
    `selfalign align --robot` does the rest."""
    embodiment_index: int | None = None
    """Which robot, where the recordings are of several."""
    play_only: bool = False
    """Leave out what was recorded for a task."""
    seconds: float | None = None
    """Take episodes until they last so long together; None: all."""
    name: str | None = None
    """What to call the robot; None: as the recordings do."""
    image_size: int | None = None
    """Side of the square that pictures are resized to, with padding; None: they keep their size."""
    video: bool = False
    """Store cameras as video, which is smaller and not exact."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds:g}; leave it out to take all")


def run(config: ImportConfig) -> Path:
    """Writes the play; it appears at `out` only when it is complete.

    Raises:
        FileNotFoundError: no recordings there.
        ValueError: damaged recordings, NaN, several robots of which none was chosen, a camera that is not there,
            no such episode, or something at `out` already.
    """
    source = _open(config)
    picks = _first(source, source.of_robot(config.embodiment_index, play_only=config.play_only), config.seconds)
    body = dict(source.embodiments[source.refs[picks[0]].embodiment_index])
    if config.name is not None:
        body["name"] = config.name
    robot = None if config.robot is None else embodiments.get(config.robot)
    names = {column: list(dim_names(source, column, robot)) for column in (STATE, ACTION)}
    with LeRobotWriter(
        config.out,
        fps=source.info.fps,
        embodiments=[body],
        robot_type=source.info.robot_type,
        names={column: told for column, told in names.items() if told},
        video=config.video,
    ) as writer:
        for episode in track(_as_play(source, picks, config), description="importing", total=len(picks)):
            writer.add_episode(episode)
    frames = sum(source.refs[i].length for i in picks)
    print(f"{config.out}: {len(picks)} episodes of {body.get('name', 'the robot')}, {frames / source.info.fps:.0f} s")
    return config.out


def _first(source: SourceData, picks: list[int], seconds: float | None) -> list[int]:
    """Episodes until they last so long together."""
    if seconds is None:
        return picks
    before = np.cumsum([0.0, *(source.refs[i].length / source.info.fps for i in picks)])
    return [i for i, begun in zip(picks, before) if begun < seconds]


def _open(config: ImportConfig) -> SourceData:
    cameras: Mapping[str, str] | None = config.cameras or None
    source = SourceData.open(config.source, cameras=cameras)
    if cameras is None and config.robot is not None:
        cameras = embodiments.get(config.robot).pick_cameras(source.info.cameras)
        source = SourceData(source.readers, cameras=cameras)
    return source


def _as_play(source: SourceData, picks: list[int], config: ImportConfig) -> Iterator[Episode]:
    first: Episode | None = None
    for index, episode in zip(picks, source.episodes(picks), strict=True):
        first = first or episode
        check_alike(first, episode, index, config.source)
        check_finite(episode, index, config.source)
        plain: dict[str, Any] = {"task": "", "is_play": True, "embodiment_index": 0, "extra": {}}
        if config.image_size is not None:
            size = config.image_size
            plain["images"] = {camera: resize_with_pad(x, size, size) for camera, x in episode.images.items()}
        yield replace(episode, **plain)
