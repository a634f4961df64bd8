"""A matrix as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfalign.bench.tables import percent

COLUMNS = ("cell", "unseen", "given", "success (95 %)", "fit s", "peak MB", "kept kB")


def print_matrix(result: Mapping[str, Any], console: Console) -> None:
    """Success and costs of every cell, adaptation speed, and what failed."""
    # As text: names and labels are anybody's, and `[v2]` would be taken for markup.
    title = f"Plan {result['plan']}: success over bodies, with the 95 % interval of a bootstrap over bodies"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[-4:] else "left", no_wrap=column in COLUMNS[-5:])
    for entry in result["cells"]:
        for row in _rows(entry):
            table.add_row(*map(Text, row))
    console.print(table)
    for speed in result["speed"]:
        console.print(speed_line(speed), markup=False)
    for entry in result["cells"]:
        if "error" in entry:
            settings = entry["settings"]
            told = f"{entry['label']} {settings['method']} {settings['scenario']} {settings['task']}"
            console.print(f"failed: {told}: {entry['error']}", markup=False)


def _rows(entry: Mapping[str, Any]) -> list[list[str]]:
    settings = entry["settings"]
    method = settings["method"]
    if settings["region"] == "source":
        method = "oracle" if method == "selfalign" else f"{method}, seen bodies"
    told = [f"{entry['label']} {method}", f"{settings['scenario']} {settings['task']}"]
    if "error" in entry:
        return [[*told, "", "failed", "", "", ""]]
    unit = f"shown {settings.get('shown', '')}".strip() if settings["demonstrations"] else "play"
    return [
        [
            *told,
            f"{amount} {unit}",
            percent(of["success"]),
            f"{of['fit_seconds']:.0f}",
            f"{of['peak_megabytes']:.0f}",
            f"{of['bytes_stored'] / 1e3:.0f}",
        ]
        for amount, of in entry["summary"].items()
    ]


def speed_line(speed: Mapping[str, Any]) -> str:
    """Adaptation speed in words."""
    told = f"{speed['label']} {speed['method']}, {speed['scenario']}, {speed['task']}: "
    reached, ceiling = (
        speed["trajectories"],
        f"{100 * speed['share']:.0f} % of the oracle's {100 * speed['oracle']:.0f} %",
    )
    if reached["value"] is None:
        return f"{told}no amount of play that was measured gets to {ceiling}"
    low, high = ("more" if end is None else str(end) for end in (reached["low"], reached["high"]))
    ends = "" if reached["low"] is None else f" [{low}, {high}]"  # one body says nothing of others
    needed = f"{reached['value']}{ends} trajectories of play ({speed['robot_seconds']:.0f} s)"
    return f"{told}{needed} to {ceiling}"
