"""`selfalign bench experts`: the scripted experts on every robot and task."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from selfalign.bench.stats import wilson
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.sim.engine import Simulation
from selfalign.sim.experts import Score, evaluate
from selfalign.sim.robots import ROBOTS
from selfalign.sim.tasks import KINDS, offered

FORMAT = "selfalign-experts-1"


@dataclass(frozen=True)
class ExpertsConfig:
    """Measure the scripted experts on every robot and task."""

    episodes: int = 100
    """Of each robot and task."""
    out: Annotated[Path | None, arg(aliases=("--json",))] = None
    """Where the table is written, as a whole when all are measured."""
    seed: int = 0
    """Draws the scenes."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"--episodes {self.episodes}: at least 1")


def run(config: ExpertsConfig) -> None:
    """Measures, prints a table, and writes it."""
    watch, rows, named = Stopwatch(), [], {robot.name: robot for robot in ROBOTS.values()}
    for score in scores(config):
        robot = named[score.robot]
        interval = wilson(score.successes, score.episodes).to_dict()
        row = {**asdict(score), "rate": score.rate, "interval": interval, "seed": config.seed}
        row["offered"] = offered(score.task, robot.arm, robot.gripper)
        rows.append(row)
        note = "" if row["offered"] else "  not offered"
        print(f"{score.robot:16} {score.task:6} {score.successes:3} of {score.episodes}{note}", flush=True)
    if config.out is not None:
        write_json(config.out, {"format": FORMAT, "provenance": provenance(watch.seconds), "rows": rows})


def scores(config: ExpertsConfig) -> Iterator[Score]:
    """One of each robot and task."""
    for name, pairs in groupby(product(ROBOTS, KINDS), key=lambda pair: pair[0]):
        sim = Simulation(ROBOTS[name])  # made once for all tasks
        for _, kind in pairs:
            yield evaluate(ROBOTS[name], kind, config.episodes, config.seed, sim=sim)
