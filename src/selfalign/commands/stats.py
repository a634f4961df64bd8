"""`selfalign stats`: what a robot's states and actions are normalised with, computed, shown and written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from selfalign import embodiments
from selfalign.data.normalize import FieldStats, Mode, NormStats
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.statistics import dim_names, norm_stats, trajectories
from selfalign.model.weights import write_json

Format = Literal["openpi", "lerobot", "selfalign"]


@dataclass(frozen=True)
class StatsConfig:
    """What states and actions are normalised with: computed from recordings, shown, written for openpi or LeRobot."""

    data: tuple[Path, ...]
    """Data sets: lerobot:PATH[,PATH...], rlds:PATH@HZ, or paths alone. Pictures and videos are not decoded."""
    out: Path | None = None
    """File or folder to write to; None: show only."""
    format: Format = "openpi"
    """openpi: norm_stats.json. lerobot: the entries of state and action in meta/stats.json; others stay. selfalign: a
    file that `NormStats.from_dict` reads."""
    mode: Mode = "zscore"
    """By mean and deviation (pi0), or by the 1 % and 99 % quantiles (pi0.5). Every file has both, but only selfalign's
    says which; here it decides which dimensions are near-constant."""
    robot: str | None = None
    """A robot's name or the path of its file: statistics of what the model sees, after the robot's own steps."""
    horizon: int | None = None
    """Actions in a chunk; needed for robots whose actions are relative to the chunk's start."""
    embodiment_index: int | None = None
    """Which robot, where the data has several."""
    play_only: bool = False
    """Leave demonstrations out."""
    clip: float | None = None
    """Bound of normalised numbers, kept in selfalign's file only; None: none."""


def run(config: StatsConfig) -> NormStats:
    """Compute, show and write; warns of near-constant dimensions by name.

    Raises:
        FileNotFoundError: no data set.
        ValueError: damaged data, NaN, several robots of which none was chosen, or nothing left to count.
    """
    source = SourceData.open(config.data)
    robot = None if config.robot is None else embodiments.get(config.robot)
    chosen = source.of_robot(config.embodiment_index, play_only=config.play_only)
    stats = norm_stats(trajectories(source, chosen), config.mode, robot=robot, horizon=config.horizon, clip=config.clip)
    names = {column: dim_names(source, column, robot) for column in (STATE, ACTION)}
    console = Console(markup=False)  # names are the data's own, whatever brackets they have
    for column, field in ((STATE, stats.state), (ACTION, stats.action)):
        console.print(stats_table(f"{column}, {field.count:,} vectors", field, names[column], config.mode))
    stats.warn_near_constant(names[STATE], names[ACTION])
    if config.out is not None:
        print(f"written: {write(stats, config.out, config.format)}")
    return stats


def write(stats: NormStats, path: Path, kind: Format) -> Path:
    """Writes statistics in one of the formats; returns the file."""
    if kind == "openpi":
        return stats.write_openpi(path)
    if kind == "lerobot":
        return stats.write_lerobot(path)
    path = path if path.suffix == ".json" else path / "stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, stats.to_dict())
    return path


def stats_table(title: str, field: FieldStats, names: Sequence[str], mode: Mode) -> Table:
    """A row for each dimension; near-constant ones are marked."""
    table = Table(title=title, caption="* near-constant")
    columns = ("mean", "std", "min", "q01", "q50", "q99", "max")
    table.add_column("dimension", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    constant = field.near_constant(mode)
    for i in range(field.dim):
        name = f"{i} {names[i]}" if len(names) == field.dim else str(i)
        values = (getattr(field, column)[i] for column in columns)
        table.add_row(name + (" *" if constant[i] else ""), *(f"{value:.4g}" for value in values))
    return table
