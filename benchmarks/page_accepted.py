"""The page of results on fits that were accepted for nothing: by recipe, and bodies that never succeed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from page_ablations import Files, by_scale, measured
from page_tables import markdown
from result_files import motion_of

from selfalign.ablation.recipes import SCALES
from selfalign.bench.subject import ALIGNED, BEFORE
from selfalign.report.failures import accepted_body
from selfalign.report.results import CellResult
from selfalign.sim.bodies import BodySpec

COLUMNS = ("steps", "recipe", "accepted, gained", "accepted, no gain", "rejected")


def by_recipe(files: Files) -> Iterator[str]:
    """What verdicts said of the recipes of the ablations, against what aligning gave.

    Args:
        files: of `bench ablate`.
    """
    counts = {
        (SCALES[scale].steps, recipe): [sum(of) for of in zip(*map(counted, cells.values()), strict=True)]
        for scale, group in by_scale(files).items()
        for recipe, cells in measured(group).items()
        if any(ALIGNED in row["verdicts"] for cell in cells.values() for row in cell.rows)
    }
    if not counts:
        return
    plain = [of for of in counts.values() if not any(of[1:])]
    yield (
        "**Of the [ablations](#ablations-2500-steps)**, what `align` returned, without a calibration: there a verdict "
        "goes by play losses alone. This is what such a verdict is worth for a model that was pretrained otherwise. "
        f"Of {len(plain)} of the {len(counts)} recipes every fit was accepted and gained ({sum(of[0] for of in plain)} "
        "fits); the others:"
    )
    rows = [[f"{steps:,}", recipe, *map(str, of)] for (steps, recipe), of in counts.items() if any(of[1:])]
    yield markdown(COLUMNS, rows)


def counted(cell: CellResult) -> tuple[int, int, int]:
    """Bodies that were accepted and gained, accepted without gain, and rejected."""
    found = [0, 0, 0]
    for row in cell.rows:
        if ALIGNED in row["verdicts"]:
            success = row["success"]
            gained = success[ALIGNED]["value"] > success[BEFORE]["value"]
            found[2 if not row["verdicts"][ALIGNED]["accepted"] else 0 if gained else 1] += 1
    return found[0], found[1], found[2]


def never(cells: Sequence[CellResult], beyond: Mapping[str, Any] | None) -> Iterator[str]:
    """Bodies of the shipped checkpoint that were accepted and succeed in no episode, wherever they were measured.

    Args:
        beyond: what `benchmarks/beyond.py` wrote.
    """
    rows = [
        [f"{cell.settings['scenario']}, {cell.settings['task']}, {motion_of(cell)} play", row["name"], cell.path.name]
        for cell in cells
        for row in cell.rows
        if ALIGNED in row["success"] and not row["success"][ALIGNED]["successes"] and accepted_body(row)
    ]
    for row in () if beyond is None else beyond["bodies"]:
        if accepted_body(row) and not row["success"]["successes"]:
            name = BodySpec.from_dict(row["body"]).name
            rows.append([f"camera {row['degrees']:.0f}° outside of the others, reach", name, "beyond.json"])
    if rows:
        yield "Bodies of the shipped checkpoint whose fit was accepted, and which then succeed in no episode:"
        yield markdown(("unseen", "body", "file"), rows)
