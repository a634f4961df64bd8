"""Where aligning fails: tasks and bodies by the episodes that they still miss afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfalign.bench.subject import ALIGNED, BEFORE
from selfalign.report.naming import Naming
from selfalign.report.results import CellResult

TEXT = (
    "Episodes that fail after aligning, the worst first. Where the oracle (seen bodies, aligned in the same way) "
    "misses as many, it is the policy that falls short; where it misses clearly fewer, it is the adaptation."
)
OF_EACH, LISTED = 3, 12
"""Bodies that are named, of each cell and together."""
CELL_COLUMNS = ("missed after aligning", "missed by the oracle", "bodies that miss half", "accepted of these")
BODY_COLUMNS = ("before", "after", "verdict")
"""After those that name them."""


@dataclass(frozen=True, eq=False)
class Failing:
    """A body, and what it misses after aligning."""

    cell: CellResult
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.row["name"]

    @property
    def missed(self) -> float:
        """Share of the episodes that fail after aligning."""
        return 1 - self.row["success"][ALIGNED]["value"]

    @property
    def accepted(self) -> bool | None:
        """What the verdict said; None where there was none."""
        return accepted_body(self.row)


def accepted_body(row: Mapping[str, Any]) -> bool | None:
    """What the verdict on a body's own alignment said; None where nobody judged: not every way to a body is judged."""
    verdict = row.get("verdict") or row.get("verdicts", {}).get(ALIGNED)
    return bool(verdict["accepted"]) if verdict else None


def accepted_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many bodies were accepted: `3 of 12`; `3 of 10 judged` where others have no verdict, `-` where none has."""
    judged = [accepted for row in rows if (accepted := accepted_body(row)) is not None]
    told = f"{sum(judged)} of {len(judged)}" if judged else "-"
    return f"{told} judged" if 0 < len(judged) < len(rows) else told


def failing_bodies(cell: CellResult) -> list[Failing]:
    """The bodies of a cell that miss any episode after aligning, the worst first."""
    found = [Failing(cell, row) for row in cell.rows if ALIGNED in row["success"]]
    return sorted((f for f in found if f.missed > 0), key=lambda f: (-f.missed, f.name))


def worst(cells: Sequence[CellResult], of_each: int | None = None, most: int | None = None) -> list[Failing]:
    """Bodies that fail, the worst first.

    Args:
        of_each: at most so many of each cell.
        most: at most so many together.
    """
    found = [failing for cell in cells for failing in failing_bodies(cell)[:of_each]]
    return sorted(found, key=lambda f: (-f.missed, f.cell.name, f.name))[:most]


def typical(cells: Sequence[CellResult], of_each: int = 1) -> list[Failing]:
    """Bodies in the middle of each cell, by the episodes that they miss after aligning."""
    found = []
    for cell in cells:
        bodies = [Failing(cell, row) for row in cell.rows if ALIGNED in row["success"]]
        ranked = sorted(bodies, key=lambda f: (f.missed, f.name))
        first = max(0, (len(ranked) - of_each) // 2)
        found += ranked[first : first + of_each]
    return found


def cell_rows(cells: Sequence[CellResult], naming: Naming) -> list[list[str]]:
    """A row of `CELL_COLUMNS` for each cell in which something fails, after its name."""
    failing = {id(cell): failing_bodies(cell) for cell in cells}
    ranked = sorted((c for c in cells if failing[id(c)]), key=lambda c: c.success(ALIGNED).value)
    rows = []
    for cell in ranked:
        bad = [f for f in failing[id(cell)] if f.missed >= 0.5]
        oracle = _missed(cell.sources, "oracle") if "oracle" in cell.seen else "-"
        told = f"{len(bad)} of {len(cell.rows)}"
        accepted = accepted_of([f.row for f in bad]).removesuffix(f" of {len(bad)}")
        rows.append([*naming.row(cell), _missed(cell.rows, ALIGNED), oracle, told, accepted])
    return rows


def body_rows(failing: Sequence[Failing], naming: Naming) -> list[list[str]]:
    """A row of `BODY_COLUMNS` for each body, after its own name and its cell's."""
    return [
        [
            f.name,
            *naming.row(f.cell),
            _count(f.row, BEFORE),
            _count(f.row, ALIGNED),
            {True: "accept", False: "reject", None: "-"}[f.accepted],
        ]
        for f in failing
    ]


def _missed(rows: Sequence[Mapping[str, Any]], condition: str) -> str:
    found = [row["success"][condition] for row in rows if condition in row["success"]]
    episodes = sum(of["episodes"] for of in found)
    missed = episodes - sum(of["successes"] for of in found)
    return f"{missed} of {episodes} ({100 * missed / episodes:.0f} %)"


def _count(row: Mapping[str, Any], condition: str) -> str:
    found = row["success"].get(condition)
    return "-" if found is None else f"{found['successes']} of {found['episodes']}"
