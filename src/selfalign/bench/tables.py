"""Results as tables on the terminal."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfalign.bench.stats import Interval
from selfalign.calibration import Calibration

if TYPE_CHECKING:
    from selfalign.bench.attempts import Attempt

LABELS = {
    "before": "before (prior W0)",
    "aligned": "aligned (what align returns)",
    "random": "random update of equal norm",
    "stale": "aligned before it changed",
    "swap": "another body's context",
    "short": "fitted to two trajectories",
    "late": "fitted to late actions",
    "axes": "fitted to play by its axes",
    "oracle": "oracle (seen bodies, aligned)",
    "seen_before": "seen bodies, before",
}


def label(condition: str) -> str:
    """A condition in words."""
    if condition.startswith("after_"):
        steps = condition.removeprefix("after_")
        return f"after {steps} step{'' if steps == '1' else 's'}"
    method, _, amount = condition.partition("@")
    return LABELS.get(condition) or (f"{method}, given {amount}" if amount else condition)


def percent(result: Mapping[str, Any]) -> str:
    """A success rate with its interval."""
    return Interval.from_dict(result).percent()


def drop(verdict: Mapping[str, Any]) -> str:
    """Held-out play loss before and after, of a verdict as JSON values, in which None was not finite."""
    told = ["nan" if verdict[when] is None else f"{verdict[when]:.2f}" for when in ("before", "after")]
    return " -> ".join(told)


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
            drop(verdict),
            f"{row['seconds']['align']:.0f} s",
            "accept" if verdict["accepted"] else "reject",
        )
    console.print(table)


def print_calibration(calibration: Calibration, console: Console) -> None:
    """The curve of `bench calibrate`."""
    title = (
        f"Success at {calibration.task} by held-out play loss: {calibration.bodies} bodies, {calibration.attempts} "
        f"contexts, {calibration.episodes} episodes"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("play loss", "success (95 %)", "action loss"):
        table.add_column(column, justify="right")
    columns = zip(calibration.loss, calibration.success, calibration.low, calibration.high, calibration.action_loss)
    for loss, success, low, high, action_loss in columns:
        acting = "-" if action_loss is None else f"{action_loss:.3f}"
        table.add_row(f"{loss:.3g}", Interval(success, low, high).percent(), acting)
    console.print(table)
    least, greatest = calibration.seen
    console.print(
        f"Alignment ended at play losses from {least:.3g} to {greatest:.3g}; before aligning, success was "
        f"{100 * calibration.before.success:.0f} %."
    )
    if calibration.ample is not None:
        console.print(
            f"With {calibration.ample.frames} frames of play it ended at {calibration.ample.loss:.3g} or less."
        )


def print_attempts(attempts: "Sequence[Attempt]", console: Console) -> None:
    """What verdicts said, by how the contexts came about, and whether they were right."""
    table = Table(title="Verdicts", title_justify="left", box=SIMPLE_HEAD)
    for column in ("context", "play loss", "success", "gained", "accepted", "wrongly accepted"):
        table.add_column(column, justify="left" if column == "context" else "right")
    for kind in dict.fromkeys(attempt.kind for attempt in attempts):
        chosen = [attempt for attempt in attempts if attempt.kind == kind]
        wrong = sum(attempt.verdict.accepted and attempt.gain <= 0 for attempt in chosen)
        table.add_row(
            label(kind),
            f"{mean(attempt.loss for attempt in chosen):.3g}",
            f"{100 * mean(attempt.success for attempt in chosen):.0f} %",
            f"{sum(attempt.gain > 0 for attempt in chosen)} of {len(chosen)}",
            str(sum(attempt.verdict.accepted for attempt in chosen)),
            str(wrong),
        )
    console.print(table)
