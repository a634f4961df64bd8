"""The page of results on doubts: which of the fits that verdicts accept they doubt, and how those act."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from page_tables import markdown
from result_files import FREE, acting_of, motion_of, play_of

from selfalign.bench.attempts import AXES, LATE
from selfalign.bench.subject import ALIGNED
from selfalign.calibration import Ample, Calibration
from selfalign.report.results import CellResult
from selfalign.sim.seeds import VALIDATION_FROM

PLAYED = {
    "axes": "play by their axes",
    "brisk": "briskly so",
    "narrow": "play in 0.3 of the workspace",
    "demonstrations": "play that does nothing but the task",
}
"""What motion is called on the page."""


class Ended(NamedTuple):
    """Where alignment to a body's play ended, and how the body then acted."""

    loss: float
    success: float


def doubts(cells: Sequence[CellResult], beyond: Mapping[str, Any] | None, calibration: Calibration) -> Iterator[str]:
    """Doubted and other bodies of like kinds, a row for each kind.

    Args:
        cells: those of the calibration's model count, `bench calibrate --check` among them.
        beyond: of `beyond.py`.
    """
    if calibration.ample is None:
        return
    own = [cell for cell in cells if cell.fingerprint == calibration.fingerprint]
    kinds = {name: ended for name, ended in _kinds(own, beyond, calibration.ample).items() if ended}
    if not kinds:
        return
    yield "## What is a doubt worth?"
    yield (
        f"A verdict doubts what it accepts where {calibration.ample.frames} frames of play or more end at a play loss "
        f"that is more than a tenth above {calibration.ample.loss:.2f}, the highest after which a validation body "
        "acted better ([calibration](calibration.md)). Reaching on bodies that the calibration was not fitted to, by "
        "what is unseen about them or wrong with their play; those of seeds 0 and 1 and under joint control acted as "
        "the checkpoint was trained to. *These reach* is of the doubted ones."
    )
    rows = [[name, *_told(ended, calibration)] for name, ended in kinds.items()]
    yield markdown(("", "bodies", "play loss: median", "at most", "doubted", "these reach", "the others"), rows)


def _kinds(cells: Sequence[CellResult], beyond: Mapping[str, Any] | None, ample: Ample) -> dict[str, list[Ended]]:
    """Accepted fits to ample play, by what is unlike the bodies of the sources."""
    own = [
        cell
        for cell in cells
        if cell.settings["task"] == "reach"
        and cell.settings["seed"] < VALIDATION_FROM
        and play_of(cell) * cell.settings["play_length"] >= ample.frames
    ]
    joint = [cell for cell in own if cell.settings["scenario"] == "joint"]
    known = [cell for cell in own if cell not in joint]
    kinds: dict[str, list[Ended]] = {}
    for seed in sorted({cell.settings["seed"] for cell in known}):
        free = [cell for cell in known if cell.settings["seed"] == seed and motion_of(cell) == FREE]
        kinds[f"unseen cameras, frames and arms, seed {seed}"] = _ended(free, ALIGNED)
    for motion, told in PLAYED.items():
        so = [cell for cell in known if motion_of(cell) == motion]
        kinds[f"the same, {told}"] = _ended(so, ALIGNED) + (_ended(known, AXES) if motion == AXES else [])
    kinds["the same, actions recorded a quarter of a second late"] = _ended(known, LATE)
    for row in [] if beyond is None else beyond["bodies"]:
        moved = kinds.setdefault(f"a camera {row['degrees']:g}° beyond the sources' sector", [])
        moved.append(Ended(row["verdict"]["after"], row["success"]["value"]))
    kinds["joint control, the order of joints unseen"] = _ended(joint, ALIGNED)
    return kinds


def _ended(cells: Sequence[CellResult], kind: str) -> list[Ended]:
    """Accepted fits, of each body once: as it acts at the shipped speed where that was measured."""
    found: dict[str, Ended] = {}
    for cell in sorted(cells, key=lambda cell: acting_of(cell).speed):
        for row in cell.rows:
            verdict = row.get("verdicts", {ALIGNED: row.get("verdict")}).get(kind)
            if verdict is not None and verdict["accepted"] and kind in row["success"]:
                found[row["name"]] = Ended(verdict["after"], row["success"][kind]["value"])
    return list(found.values())


def _told(ended: Sequence[Ended], calibration: Calibration) -> list[str]:
    assert calibration.ample is not None
    doubted = [bool(calibration.doubt(loss, calibration.ample.frames)) for loss, _ in ended]
    losses = [loss for loss, _ in ended]
    reached = [
        [success for (_, success), doubt in zip(ended, doubted, strict=True) if doubt == which]
        for which in (True, False)
    ]
    success = [f"{100 * fmean(values):.0f} %" if values else "-" for values in reached]
    return [str(len(ended)), f"{median(losses):.2f}", f"{max(losses):.2f}", str(sum(doubted)), *success]
