"""What the modules that write the page of results (`results_page.py`) share: tables, and the conditions of a cell."""

from collections.abc import Sequence

from selfalign.report.results import CellResult

STEPS = ("after_10", "after_30", "after_100", "after_300")
MAIN = ("before", *STEPS, "aligned", "random", "stale", "swap", "oracle", "seen_before")
"""Conditions of aligning itself, in the order of the tables; other names are other ways to the same bodies."""


def conditions(cell: CellResult) -> list[str]:
    """Of a cell: those of its own bodies, and those of bodies of seen kinds."""
    return [*cell.conditions, *cell.seen]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(value.replace("|", "\\|") for value in line) + " |" for line in lines)
