"""Results as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfalign.bench.stats import Interval

LABELS = {
    "before": "before (prior W0)",
    "aligned": "aligned (what align returns)",
    "random": "random update of equal norm",
    "swap": "another body's context",
    "oracle": "oracle (seen bodies, aligned)",
}


def label(condition: str) -> str:
    """A condition in words."""
    return LABELS.get(condition) or f"after {condition.removeprefix('after_')} steps"


def percent(result: Mapping[str, Any]) -> str:
    """A success rate with its interval."""
    return Interval.from_dict(result).percent()


def print_adapt(result: Mapping[str, Any], console: Console) -> None:
    """The tables of `bench adapt`: every body, then means over bodies."""
    settings, summary = result["settings"], result["summary"]
    rows = [row for row in result["bodies"] if row["role"] == "heldout"]
    conditions = [name for name in summary["success"] if name != "oracle"]
    title = (
        f"{settings['task']} on unseen bodies, scenario {settings['scenario']}, seed {settings['seed']}: success in "
        f"{settings['episodes']} episodes, {settings['play']} play trajectories"
    )
    bodies = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    bodies.add_column("body (%)", no_wrap=True)
    for name in conditions:
        bodies.add_column(name.removeprefix("after_"), justify="right", no_wrap=True)
    bodies.add_column("verdict", no_wrap=True)
    for row in rows:
        cells = [f"{100 * row['success'][name]['value']:.0f}" if name in row["success"] else "-" for name in conditions]
        verdict = "accept" if row["verdict"]["accepted"] else "reject"
        bodies.add_row(f"{row['index']} {row['body']['arm']} {row['name'][-6:]}", *cells, verdict)
    console.print(bodies)

    title = "Mean over bodies, with the 95 % interval of a bootstrap over bodies"
    means = Table(title=title, title_justify="left", box=SIMPLE_HEAD, min_width=len(title))
    for column in ("context", "success", "worst body"):
        means.add_column(column, justify="left" if column == "context" else "right")
    for name, success in summary["success"].items():
        means.add_row(label(name), percent(success), f"{100 * success['worst_body']:.0f} %")
    console.print(means)
    console.print(closing_line(summary))


def closing_line(summary: Mapping[str, Any]) -> str:
    """What the means do not say."""
    seconds, ratio, transfer = (
        summary[key] for key in ("seconds_per_body", "aligned_over_oracle", "play_loss_drop_vs_action_loss_gain")
    )
    parts = [
        f"aligned / oracle {percent(ratio)}" if ratio else "the oracle never succeeds",
        f"{summary['context_megabytes']:.2f} MB a context",
        f"a body takes {seconds['play']:.0f} s to play, {seconds['align']:.0f} s to align, "
        f"{seconds['evaluate']:.0f} s to evaluate",
    ]
    if transfer and transfer["rank_correlation"] is not None:
        parts.append(f"rank correlation of play-loss drop and action-loss gain {transfer['rank_correlation']:.2f}")
    return "; ".join(parts) + "."


def print_demo(result: Mapping[str, Any], console: Console) -> None:
    """The table of `demo`."""
    title = "Before and after aligning to each body's own play"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("unseen", "body", "before", "after", "play loss", "align", "verdict"):
        table.add_column(column)
    for row in result["bodies"]:
        verdict = row["verdict"]
        table.add_row(
            row["scenario"],
            row["body"]["arm"],
            percent(row["success"]["before"]),
            percent(row["success"]["aligned"]),
            f"{verdict['before']:.2f} -> {verdict['after']:.2f}",
            f"{row['seconds']['align']:.0f} s",
            "accept" if verdict["accepted"] else "reject",
        )
    console.print(table)
