"""`selfalign bench matrix`: every cell of a plan, each measured once and kept, over processes or over Ray.

    OUT/plan.json                what was asked for
    OUT/matrix.json              all cells of the plan, failed ones with their error, and what they say together
    CACHE/bodies/ROW/003.json    a finished body
    CACHE/cells/CELL.json        a finished cell

CACHE is OUT where no other folder is named. CELL is a digest of the cell's settings and files, of its checkpoint's
weights, of how that wants to be aligned and of its calibration; ROW is the same but for how many bodies there are. So
an interrupted run goes on where it stopped, plans that share a cache measure what they have in common (the oracle, most
of all) once, and a cell of more bodies begins with those that a cell of fewer has measured.
"""

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from selfalign.acting import Acting
from selfalign.baselines.choices import tuned_for
from selfalign.bench import cell as cells
from selfalign.bench.matrix_table import print_matrix
from selfalign.bench.methods import complete
from selfalign.bench.plan import DEFAULT_CHECKPOINT, PLANS, SAME_TEST, Cell, Plan
from selfalign.bench.resident import close_arenas, policy_of
from selfalign.bench.stats import amount_to_reach
from selfalign.bench.subject import identity_of
from selfalign.cluster import Cluster, run_on
from selfalign.configs import below, refuse
from selfalign.provenance import Stopwatch, digest, provenance, read_kept, without_places, write_json
from selfalign.sim.prepare import prepare
from selfalign.sim.seeds import Split, seeds_of, split_of
from selfalign.sim.tasks import KINDS, Kind
from selfalign.workers import progress_bar

FORMAT, CELL_FORMAT = "selfalign-matrix-1", "selfalign-cell-1"
SHARE = 0.9
"""Of the oracle, that adaptation speed is measured to."""


@dataclass(frozen=True)
class MatrixConfig:
    """A plan of cells: checkpoints, methods, scenarios, tasks and amounts of play. Resumable, and cached by cell."""

    plan: str
    """JSON file of the plan, or a name: smoke, headline, stale, curve, few-shot, baselines, other-tasks, play-quality,
    acting."""
    out: Path
    """Folder of the results."""
    checkpoint: str | None = None
    """That a named plan measures; None: checkpoints/tiny. A file says its own, as it does what follows."""
    split: Split | None = None
    """Whose bodies a named plan measures, the first of them (`sim/seeds.py`); None: test. Choices are made on those of
    validation."""
    seed: int | None = None
    """Of the bodies that a named plan measures, in place of `split`."""
    tasks: tuple[Kind, ...] = KINDS
    """Cells of other tasks are left out."""
    bodies: int | None = None
    """Of each cell; None: as many as the plan says."""
    speed: float | None = None
    """Of acting, in cells that have none of their own; None: the checkpoint's. At 1 it acts as it was trained."""
    temperature: float | None = None
    """Likewise."""
    cache: Path | None = None
    """Folder of finished cells and bodies, which are not measured again; plans may share one. None: `out`."""
    workers: int = 2
    """Processes, each with one thread."""
    cluster: Cluster = "none"
    """"ray": on Ray, local or (RAY_ADDRESS) a cluster's (extra `cluster`)."""

    def __post_init__(self) -> None:
        wrong = below(self, workers=1, bodies=1, seed=0)
        given = [name for name in ("checkpoint", "split", "seed") if getattr(self, name) is not None]
        if given and self.plan not in PLANS:
            wrong.append(f"{', '.join(given)} for the plan {self.plan!r} (a file says its own)")
        if self.split is not None and self.seed is not None:
            wrong.append(f"split={self.split!r} and seed={self.seed} (one of them)")
        refuse("bench matrix", wrong)
        Acting().but(self.speed, self.temperature)  # raises for what nothing acts with


@dataclass
class CellState:
    """One cell in the middle of a run."""

    cell: Cell
    identity: dict[str, Any] = field(default_factory=dict)
    """What its numbers depend on."""
    digest: str = ""
    rows: str = ""
    """The digest under which its bodies are kept."""
    jobs: list[cells.BodyJob] = field(default_factory=list)
    error: str = ""
    traceback: str = ""
    result: dict[str, Any] | None = None

    def has(self, job: cells.BodyJob) -> bool:
        """Whether a job's row is one of this cell's."""
        return job.digest == self.rows and job.index < len(self.jobs)


def run(config: MatrixConfig, *, show: bool = True) -> dict[str, Any]:
    """Measures the plan that a config names; see `run_plan`.

    Raises:
        RuntimeError: a cell failed; what was measured is written.
    """
    seed = seeds_of(config.split or "test")[0] if config.seed is None else config.seed
    plan = Plan.open(config.plan, config.checkpoint or DEFAULT_CHECKPOINT, seed).of_tasks(config.tasks)
    plan = plan.acting_at(config.speed, config.temperature)
    plan = plan if config.bodies is None else plan.of_bodies(config.bodies)
    result = run_plan(plan, config.out, cache=config.cache, workers=config.workers, cluster=config.cluster, show=show)
    if result["failed"]:
        failed, written = f"{result['failed']} of {len(result['cells'])} cells failed", config.out / "matrix.json"
        raise RuntimeError(f"{failed}: {written} says why; the same command tries them again")
    return result


def run_plan(
    plan: Plan,
    out: Path,
    *,
    cache: Path | None = None,
    workers: int = 2,
    cluster: Cluster = "none",
    calibrated: bool = True,
    show: bool = True,
    table: bool = True,
) -> dict[str, Any]:
    """Measures what is not there yet, prints a table, writes `matrix.json`, and returns what it wrote.

    A cell that fails is in it with its error; the others are measured all the same, and the next run tries it again.

    Args:
        calibrated: let checkpoints have the calibration that they have.

    Raises:
        RuntimeError: a worker died.
        ImportError: Ray is asked for and not installed.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    cache = out if cache is None else cache
    plan.save(out / "plan.json")
    states = [_open(cell, cache, calibrated) for cell in plan.cells]
    notes = tuned_for_others(states)
    for note in notes:
        console.print(f"Note: {note}", markup=False)
    try:
        kept = _measure(states, cache / "bodies", workers, cluster, show)
    except KeyboardInterrupt:
        told = f"Interrupted. What is finished is in {cache}; the same command goes on from there."
        console.print(told, markup=False)
        raise
    finally:
        close_arenas()
    for state in states:
        _finish(state, cache)
    measured = [_entry(state) for state in states]
    result = {
        "format": FORMAT,
        "plan": plan.name,
        "provenance": {**provenance(None if kept else watch.seconds), "workers": workers, "cluster": cluster},
        "notes": notes,
        "failed": sum("error" in entry for entry in measured),
        "speed": speeds(measured),
        "cells": measured,
    }
    path = write_json(out / "matrix.json", result)
    if table:
        print_matrix(result, console)
    console.print(f"Written to {path}", markup=False)
    return result


def _open(cell: Cell, cache: Path, calibrated: bool) -> CellState:
    """A cell with what is known of it; why it cannot be measured is its error, and stops no other."""
    state = CellState(cell)
    try:
        policy = policy_of(cell.checkpoint)
        policy = policy if calibrated else replace(policy, calibration=None)
        state.identity = {
            "format": CELL_FORMAT,
            "settings": cell.measured(),
            **identity_of(policy, cell.acting(policy.acting)),
            **_method(cell),
        }
        state.digest, state.rows = digest(state.identity), _digest_of_a_body(state.identity)
        own = identity_of(policy)
        state.jobs = [
            cells.BodyJob(state.rows, cell, index, body, calibrated, own)
            for index, body in enumerate(cells.bodies_of(cell))
        ]
    except Exception as error:
        state.error, state.traceback = f"{type(error).__name__}: {error}", traceback.format_exc()
        return state
    state.result = read_kept(_cell_path(cache, state.digest), state.identity)
    return state


def tuned_for_others(states: Sequence[CellState]) -> list[str]:
    """Methods with settings that were tuned for another model than the one that is measured: what to know of results,
    which may do these methods wrong."""
    found: dict[tuple[str, str], list[str]] = {}
    for state in states:
        tuned, own = tuned_for(state.cell.method, state.cell.settings), state.identity.get("fingerprint")
        if tuned is not None and own is not None and tuned != own:
            found.setdefault((state.cell.checkpoint, tuned), []).append(state.cell.method)
    return [
        f"{', '.join(dict.fromkeys(names))} on {checkpoint}: settings that were tuned for another model ({tuned}); "
        f"`selfalign bench tune --method NAME --checkpoint {checkpoint}` finds those for this one"
        for (checkpoint, tuned), names in found.items()
    ]


def _digest_of_a_body(identity: Mapping[str, Any]) -> str:
    """Of what a body's numbers depend on: not on how many others there are, since a seed draws the same ones first."""
    settings = {name: value for name, value in identity["settings"].items() if name != "bodies"}
    return digest({**identity, "settings": settings})


def _method(cell: Cell) -> dict[str, Any]:
    """What a baseline's numbers depend on beside the settings of its cell: all of its settings, and the sum of the file
    or the files that it reads (an encoder, a store of contexts), where it does: a path says little.

    Raises:
        ValueError: no such method or setting, or not what the method learns from.
        FileNotFoundError: the file is not there.
    """
    settings = complete(cell.method, cell.settings, bool(cell.play), bool(cell.demonstrations))
    told: dict[str, Any] = {"method": settings} if settings else {}
    path = settings.get("path")
    if path is None:
        return told
    if not Path(path).exists():
        writer = "`selfalign bench encoder`" if cell.method == "encoder" else "`ContextStore.save`"
        raise FileNotFoundError(f"{cell.method} reads {path}, which is not there; {writer} writes one")
    files = sorted(file for file in Path(path).rglob("*") if file.is_file()) or [Path(path)]
    return {**told, "file": digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files], 64)}


def _measure(states: Sequence[CellState], folder: Path, workers: int, cluster: Cluster, show: bool) -> int:
    """Runs the jobs whose rows are not in the folder; returns how many cells and bodies an earlier run had measured."""
    # Bodies of cells that differ in their labels alone, or in how many bodies they have, are measured once.
    missing = [state for state in states if state.result is None and not state.error]
    distinct: dict[tuple[str, int], cells.BodyJob] = {}
    for job in (job for state in missing for job in state.jobs):
        distinct.setdefault((job.digest, job.index), job)
    jobs = list(distinct.values())
    todo = [job for job in jobs if not cells.row_path(folder, job).is_file()]
    for robot in dict.fromkeys(job.body.robot for job in todo):
        prepare(robot)  # once here, rather than at the same time in every worker

    with progress_bar("measuring", len(jobs), show) as bar:
        bar.at(len(jobs) - len(todo))

        def done(group: cells.Group, rows: list[dict[str, Any]]) -> None:
            for job, row in zip(group.jobs, rows, strict=True):
                if "error" in row:
                    for state in filter(lambda state: state.has(job), missing):
                        state.error, state.traceback = f"body {job.index}: {row['error']}", row["traceback"]
                elif group.folder is None:
                    write_json(cells.row_path(folder, job), row)
                bar.finished(f"{job.cell.name} {job.cell.method} {job.index}")

        # A cluster's machines need not share a disk: their rows come back, and are kept here.
        groups = cells.grouped(todo, folder if cluster == "none" else None)
        run_on(cluster, cells.measure, groups, workers, on_done=done)
    return sum(state.result is not None for state in states) + len(jobs) - len(todo)


def _finish(state: CellState, cache: Path) -> None:
    """The result of a cell of which all bodies are there."""
    if state.error or state.result is not None:
        return
    rows = [json.loads(cells.row_path(cache / "bodies", job).read_text(encoding="utf-8")) for job in state.jobs]
    state.result = {
        **state.identity,
        "summary": cells.summarise(rows),
        "seconds": round(sum(row["seconds"]["all"] for row in rows), 1),
        "provenance": provenance(),
        "bodies": rows,
    }
    write_json(_cell_path(cache, state.digest), state.result)


def _entry(state: CellState) -> dict[str, Any]:
    """A cell in `matrix.json`: what it is, and its result or its error."""
    cell = state.cell
    head = {
        "label": cell.name,
        "checkpoint": without_places(cell.checkpoint),
        "split": split_of(cell.seed),
        "digest": state.digest,
    }
    if state.result is None:
        return {**head, "settings": cell.measured(), "error": state.error, "traceback": state.traceback}
    return {**head, **state.result}


def _cell_path(cache: Path, name: str) -> Path:
    return cache / "cells" / f"{name}.json"


# ---- what cells say together ---------------------------------------------------------------------------------------


def speeds(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adaptation speed of every cell of held-out bodies that varies play and whose oracle was measured."""
    found = []
    for entry in measured:
        oracle = _oracle(entry, measured)
        if oracle is None:
            continue
        most = max(oracle["summary"], key=int)
        curve = {int(amount): _successes(entry, amount) for amount in entry["summary"]}
        reached = amount_to_reach(curve, _successes(oracle, most), share=SHARE)
        found.append(
            {
                "label": entry["label"],
                "method": entry["settings"]["method"],
                "scenario": entry["settings"]["scenario"],
                "task": entry["settings"]["task"],
                "digest": entry["digest"],
                "oracle": oracle["summary"][most]["success"]["value"],
                "share": SHARE,
                "trajectories": reached.to_dict(),
                "robot_seconds": None
                if reached.value is None
                else entry["summary"][str(reached.value)]["robot_seconds"],
            }
        )
    return found


def _oracle(entry: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The cell of source bodies that belongs to one of held-out bodies; None where there is none."""
    own = entry["settings"]
    if "error" in entry or own["region"] != "heldout" or own["demonstrations"] or len(entry["summary"]) < 2:
        return None

    def fits(other: Mapping[str, Any]) -> bool:
        its = other["settings"]
        if "error" in other or its["region"] != "source" or its["method"] != "selfalign":
            return False
        same = all(its.get(name) == own.get(name) for name in SAME_TEST)
        return same and all(other.get(name) == entry.get(name) for name in ("fingerprint", "acting"))

    return max(filter(fits, measured), key=lambda other: max(other["settings"]["play"]), default=None)


def _successes(entry: Mapping[str, Any], amount: str) -> list[float]:
    return [row["results"][amount]["success"]["value"] for row in entry["bodies"]]
