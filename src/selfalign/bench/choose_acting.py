"""`selfalign bench acting`: at what speed and temperature a checkpoint acts best, on validation bodies.

    plan `acting`: speeds x temperatures x scenarios x tasks -> mean success of each pair -> settings.json

A pair's score is the mean over its cells, so that every scenario and every task weighs the same. Bodies play and are
aligned once, whatever they act with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from selfalign.acting import Acting
from selfalign.bench.matrix import run_plan
from selfalign.bench.plan import Plan
from selfalign.bench.stats import Interval, mean_success
from selfalign.checkpoint import load, set_acting
from selfalign.configs import below, refuse
from selfalign.sim.seeds import VALIDATION_FROM
from selfalign.sim.tasks import KINDS


@dataclass(frozen=True)
class ActingConfig:
    """Find the speed and temperature that a checkpoint acts best with, and write them into it."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory. A calibration that it has is of how it acted before, and goes."""
    out: Path = Path("outputs/acting")
    """Folder of the results, `matrix.json`; also what makes an interrupted run resumable."""
    bodies: int = 2
    """Of each scenario."""
    seed: int = VALIDATION_FROM
    """Draws bodies, play and scenes. From a million on, so that bodies on which results are reported stay unseen."""
    cache: Path | None = None
    """Folder of finished cells, as that of `bench matrix`."""
    workers: int = 2
    """Processes, each with one thread."""

    def __post_init__(self) -> None:
        refuse("bench acting", below(self, bodies=1, workers=1, seed=VALIDATION_FROM))


def run(config: ActingConfig, *, show: bool = True) -> Acting:
    """Measures, prints a table, writes the best pair into the checkpoint and returns it.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a damaged checkpoint.
        RuntimeError: a cell could not be measured, or a worker died.
    """
    load(config.checkpoint)  # before hours of work
    plan = Plan.open("acting", str(config.checkpoint), config.seed).of_bodies(config.bodies)
    told: dict[str, Any] = {"cache": config.cache, "workers": config.workers, "show": show, "table": False}
    result = run_plan(plan, config.out, calibrated=False, **told)  # which goes, so that a second run finds the same
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} cells failed: {config.out / 'matrix.json'} says why; run it again")
    chosen, console = best(result), Console(quiet=not show)
    console.print(_table(result, chosen))
    set_acting(config.checkpoint, chosen)
    console.print(f"{config.checkpoint} acts at {chosen} now.")
    return chosen


def best(result: Mapping[str, Any]) -> Acting:
    """The pair with the most success in a matrix of the plan `acting`; of equals the first."""
    scores = success(result)
    return max(scores, key=lambda acting: scores[acting].value)


def success(result: Mapping[str, Any], task: str | None = None) -> dict[Acting, Interval]:
    """Mean success of each pair, over all cells or those of a task, with its interval over bodies."""
    found: dict[Acting, dict[str, list[Mapping[str, Any]]]] = {}
    for entry in result["cells"]:
        settings = entry["settings"]
        if task in (None, settings["task"]):
            bodies = found.setdefault(Acting(settings["speed"], settings["temperature"]), {})
            for row in entry["bodies"]:
                bodies.setdefault(row["name"], []).extend(of["success"] for of in row["results"].values())
    return {acting: mean_success(list(map(_joined, bodies.values()))) for acting, bodies in found.items()}


def _joined(successes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One body's success over several cells."""
    totals = {name: sum(success[name] for success in successes) for name in ("successes", "episodes")}
    return {"value": mean(success["value"] for success in successes), **totals}


def _table(result: Mapping[str, Any], chosen: Acting) -> Table:
    table = Table("speed", "temperature", *KINDS, "all", title="Success of aligned validation bodies")
    columns = [success(result, task) for task in (*KINDS, None)]
    for acting in columns[-1]:
        style = "bold" if acting == chosen else None
        numbers = [column[acting].percent() for column in columns]
        table.add_row(f"{acting.speed:g}", f"{acting.temperature:g}", *numbers, style=style)
    return table
