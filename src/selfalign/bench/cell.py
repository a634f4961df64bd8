"""One cell of a matrix: what a worker measures of one body, and what the bodies of a cell come to."""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfalign.bench.plan import Cell
from selfalign.bench.resident import arena_of, policy_of
from selfalign.bench.rollout import RolloutConfig, rollout
from selfalign.bench.stats import over_bodies
from selfalign.bench.subject import body_seed, check_unchanged
from selfalign.bench.workshop import Workshop
from selfalign.provenance import commit, write_json
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.regions import Region
from selfalign.sim.tasks import offered

ROLES: tuple[Region, ...] = ("heldout", "source")
"""In the order by which seeds of bodies are told apart, here and in `bench adapt`: the same seed, the same play."""

TOLD = ("verdict", "steps", "best_step", "stopped", "update_norm", "nearest", "training")
"""What a row tells of a method's history, where the method says it."""


@dataclass(frozen=True)
class BodyJob:
    """One body of one cell."""

    digest: str
    """Of what its numbers depend on, beside which body it is."""
    cell: Cell
    index: int
    body: BodySpec
    calibrated: bool = True
    """Bodies are aligned with the checkpoint's calibration, where it has one."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint was when the run began (`identity_of`); empty: nobody has asked."""

    @property
    def seed(self) -> int:
        return body_seed(self.cell.seed, ROLES.index(self.cell.region), self.index)


def bodies_of(cell: Cell) -> list[BodySpec]:
    """The bodies of a cell.

    Raises:
        ValueError: one of them is not offered the cell's task, or the one that is to be shown.
    """
    bodies = sample_bodies(cell.bodies, cell.seed, cell.region, cell.scenario)
    for body in bodies:
        for task in (cell.task, cell.demonstrated):
            if not offered(task, body.arm, body.gripper):
                raise ValueError(f"{task} is not offered for {body.robot.name}; choose another task or scenario")
    return bodies


@dataclass(frozen=True)
class Group:
    """Jobs of one body and one checkpoint, which a worker does one after another, for the sake of what they share."""

    jobs: tuple[BodyJob, ...]
    folder: Path | None = None
    """In which rows are kept as they are made; None: they only come back."""


def grouped(jobs: Sequence[BodyJob], folder: Path | None) -> list[Group]:
    """Jobs by body, those of one robot after another: a worker then seldom changes robots."""
    groups: dict[tuple[str, int, BodySpec], list[BodyJob]] = {}
    for job in jobs:
        groups.setdefault((job.cell.checkpoint, job.seed, job.body), []).append(job)
    ordered = sorted(groups.values(), key=lambda own: (own[0].body.robot.name, own[0].cell.checkpoint))
    return [Group(tuple(own), folder) for own in ordered]


def row_path(folder: Path, job: BodyJob) -> Path:
    """Where the row of a body is kept."""
    return folder / job.digest / f"{job.index:03d}.json"


def measure(group: Group) -> list[dict[str, Any]]:
    """What a worker does: the rows of a group's jobs; for one that fails, `error` and where it was raised."""
    commit()  # is read now, not when the first body is finished
    workshop, rows = None, []
    for job in group.jobs:
        try:
            workshop = workshop or _workshop(job)
            row = measure_body(job, workshop)
            if group.folder is not None:
                write_json(row_path(group.folder, job), row)
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        rows.append(row)
    return rows


def _workshop(job: BodyJob) -> Workshop:
    policy = policy_of(job.cell.checkpoint)
    policy = policy if job.calibrated else replace(policy, calibration=None)
    check_unchanged(policy, job.policy)
    return Workshop(policy, job.body, job.seed)


def measure_body(job: BodyJob, workshop: Workshop) -> dict[str, Any]:
    """Records, fits and acts, amount after amount; everything as JSON values.

    Seconds are of this job: what another job of the group has made already takes none.
    """
    cell, policy = job.cell, workshop.policy
    identity, began = policy.fingerprint(), time.perf_counter()
    workshop.play(cell)
    workshop.demonstrations(cell)
    recorded = time.perf_counter() - began
    results = {str(amount): _measure_amount(job, workshop, amount) for amount in cell.amounts}
    if policy.fingerprint() != identity:
        raise RuntimeError(f"{cell.method} has changed the policy that it was given; it must change a copy")
    return {
        "index": job.index,
        "name": job.body.name,
        "body": job.body.to_dict(),
        "results": results,
        "commit": commit(),
        "seconds": {"record": round(recorded, 2), "all": round(time.perf_counter() - began, 2)},
    }


def _measure_amount(job: BodyJob, workshop: Workshop, amount: int) -> dict[str, Any]:
    cell, made = job.cell, workshop.make(job.cell, amount)
    fitted = made.fitted
    run = RolloutConfig((cell.task,), cell.episodes, job.seed, cell.execute, cell.num_steps)
    actor = replace(fitted.policy, acting=cell.acting(workshop.policy.acting))
    success = rollout(actor, job.body, fitted.context, run, arena=arena_of(job.body)).to_dict()
    told = {name: fitted.history[name] for name in TOLD if name in fitted.history}
    if "verdict" in told and actor.acting != workshop.policy.acting:
        told["verdict"] = {**told["verdict"], "expected": None}  # which is of how the checkpoint acts
    return {
        "success": success,
        "robot_seconds": made.robot_seconds,
        "fit_seconds": round(fitted.seconds, 2),
        "peak_megabytes": made.peak_megabytes,
        "bytes_stored": fitted.bytes_stored,
        **told,
        "config": fitted.config,
    }


# ---- what the bodies come to ---------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each amount: success with its interval over bodies, and costs on average (memory: the most).

    Args:
        rows: of the bodies of one cell, as `measure_body` gives them.
    """
    summary = {}
    for amount in rows[0]["results"]:
        results = [row["results"][amount] for row in rows]
        mean = {name: sum(r[name] for r in results) / len(results) for name in ("robot_seconds", "fit_seconds")}
        verdicts = [r["verdict"]["accepted"] for r in results if "verdict" in r]
        summary[amount] = {
            "success": over_bodies([r["success"] for r in results]),
            **{name: round(value, 2) for name, value in mean.items()},
            "peak_megabytes": max(r["peak_megabytes"] for r in results),
            "bytes_stored": round(sum(r["bytes_stored"] for r in results) / len(results)),
            **({"accepted": sum(verdicts)} if verdicts else {}),
        }
    return summary
