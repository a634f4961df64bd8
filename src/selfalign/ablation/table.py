"""The ablation as one table: what each recipe does before and after aligning, and its ceiling."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfalign.bench.tables import percent

Rows = dict[tuple[str, str], dict[str, str]]
"""Success by (cell, scenario) and column."""


def print_ablation(matrix: Mapping[str, Any], console: Console) -> None:
    """Success of every recipe in every scenario, with 95 % intervals over bodies."""
    rows = tabulate(matrix)
    columns = sorted_columns(rows)
    table = Table(title="Success over bodies (95 %)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("cell", "scenario", *columns):
        table.add_column(column, no_wrap=True)
    for (label, scenario), row in rows.items():
        table.add_row(label, scenario, *(row.get(column, "") for column in columns))
    console.print(table)


def tabulate(matrix: Mapping[str, Any]) -> Rows:
    """Columns `before`, `play N` for each amount, and `oracle`; a cell that failed says so."""
    rows: Rows = {}
    for entry in matrix["cells"]:
        settings = entry["settings"]
        row = rows.setdefault((entry["label"], settings["scenario"]), {})
        if "error" in entry:
            row[_column(settings, max(settings["play"]))] = "failed"
        else:
            row |= {_column(settings, amount): percent(of["success"]) for amount, of in entry["summary"].items()}
    return rows


def sorted_columns(rows: Rows) -> list[str]:
    """`before`, amounts of play rising, `oracle`."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    return sorted(columns, key=lambda column: {"before": -1, "oracle": 1_000_000}.get(column) or int(column.split()[1]))


def _column(settings: Mapping[str, Any], amount: str | int) -> str:
    if settings["method"] == "frozen":
        return "before"
    return "oracle" if settings["region"] == "source" else f"play {amount}"
