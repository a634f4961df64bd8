"""Writes docs/experiment_results.md and its figure from benchmarks/results: no number there is typed by hand.

python benchmarks/results_page.py
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from page_ablations import PICTURES, ablations, by_scale, measured, recipes_figure
from page_accepted import by_recipe, never
from page_acting import acting
from page_adaptation import adaptation, as_shipped
from page_changes import beyond, changes, unseen
from page_doubts import doubts
from page_motions import motions
from page_recipes import practice, schemes, seeds
from page_tables import MAIN, conditions, markdown
from result_files import FREE, ROOT, TUNING, Results, beside_aligned, motion_of, shipped_calibration

from selfalign.baselines.choices import setting
from selfalign.bench.attempts import AT, Attempt
from selfalign.bench.matrix_table import speed_line
from selfalign.bench.subject import BEFORE
from selfalign.bench.tables import drop, label, percent
from selfalign.report import figures
from selfalign.report.failures import BODY_COLUMNS, CELL_COLUMNS, LISTED, OF_EACH, TEXT, body_rows, cell_rows, worst
from selfalign.report.films import caption, read_films
from selfalign.report.naming import Naming
from selfalign.report.quality import confusion, reliability
from selfalign.report.results import CellResult
from selfalign.report.sections import VERDICT_COLUMNS, costs, verdict_curves, verdict_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = (
    "Written by `python benchmarks/results_page.py` from the files in [`benchmarks/results/`](../benchmarks/results/): "
    "no number is typed by hand. How each is measured is in [benchmarks/README.md](../benchmarks/README.md)."
)
DEMO = "selfalign-demo-1"
"""The format of the demo's report."""
VERDICTS, AMOUNTS = "verdicts.svg", "over_play.svg"
"""The figures of verdicts and of amounts of play, beside that of success."""


@dataclass(frozen=True)
class Config:
    """Where results lie and where the page goes."""

    results: Path = ROOT / "benchmarks/results"
    page: Path = ROOT / "docs/experiment_results.md"
    figure: Path = ROOT / "docs/assets/experiment_results.svg"
    curves: Path = ROOT / "docs/assets/over_steps.svg"
    """Success and play loss over alignment steps, for docs/alignment_experts.md."""
    films: Path = ROOT / "docs/assets/typical"
    """Folder of `selfalign bench films --which typical`, beside the figure."""


def page(results: Path, figure: str, films: Path) -> str:
    """The text of the page.

    Args:
        results: folder of the result files.
        figure: the picture's path as the page sees it.
        films: folder of `bench films`, beside the picture.
    """
    found = Results.open(results)
    data, shipped, assets = found.data, found.shipped, Path(figure).parent
    return (
        "\n\n".join(
            [
                "# Experiment results",
                WRITTEN,
                *adaptation(plain(shipped), figure),
                *typical_bodies(films, assets / films.name),
                *unseen(shipped),
                *changes(shipped),
                *beyond(data.get(results / "beyond.json")),
                *fails(as_shipped(plain(shipped))),
                *(part for measured in found.acting for part in acting(measured)),
                *methods(shipped),
                *tunings(list(found.of_format(TUNING).values())),
                *over_play(shipped, (assets / AMOUNTS).as_posix()),
                *motions(shipped),
                *seeds(plain(shipped), found.repeated),
                *practice(found.practised),
                *schemes(found.ablated),
                *ablations(found.recipes, assets, found.pushed),
                *verdicts(found.attempts, (assets / VERDICTS).as_posix()),
                *never(shipped, data.get(results / "beyond.json")),
                *by_recipe(found.recipes),
                *doubts([*shipped, *found.checked], data.get(results / "beyond.json"), shipped_calibration()),
                *(part for told in found.of_format(DEMO).values() for part in demo(told)),
                *experts(data.get(results / "experts.json")),
                *leak(data.get(results / "attention_leak.json")),
                "## Where the numbers come from",
                "Commands as they were given at that commit. The shipped checkpoint has acted at its own speed and "
                "temperature since then: where bodies acted as they were trained, `--speed 1 --temperature 1` gives "
                "the number today (`runs/5_bench.sh`, `runs/8_compare.sh`), but for random updates: they are as large "
                "as what aligning has done now.",
                markdown(("file", "command", "commit", "finished"), [_origin(path, data[path]) for path in data]),
            ]
        )
        + "\n"
    )


def methods(cells: Sequence[CellResult]) -> Iterator[str]:
    """What else can be made of the same play, or of demonstrations, and what it costs."""
    found = [beside_aligned(cell, cells) for cell in cells if at_one_amount(cell)]
    if not found:
        return
    others = list(dict.fromkeys(name for cell in found for name in at_one_amount(cell)))
    yield "## What else can be made of it?"
    yield (
        "Other ways to the same bodies, each tuned with the same number of trials on validation bodies "
        "([baselines.md](baselines.md)); `lora` and `finetune` learn from demonstrations of the task on the new body "
        "(20 in the plan `baselines`; *shown reach*: of reaching, whatever it is asked to do), the others from "
        "its play."
    )
    names = ["before", "aligned", *others, "oracle"]
    rows = []
    for cell in found:
        values = [percent(cell.success(name).to_dict()) if name in conditions(cell) else "-" for name in names]
        rows.append([cell.name, str(len(cell.rows)), *values])
    yield markdown(("unseen", "bodies", *map(label, names)), rows)
    yield "Aligned less each of them on the same bodies and scenes, in percentage points:"
    less = [
        [cell.name, *(cell.gain("aligned", name).points() if name in cell.conditions else "-" for name in others)]
        for cell in found
        if "aligned" in cell.conditions
    ]
    yield markdown(("unseen", *map(label, others)), less)
    section = costs(found)
    yield section.text
    yield markdown(section.tables[0].columns, section.tables[0].rows)


def tunings(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What was tried of each method, and which of it was chosen."""
    tuned = [result for result in results if result["best"] is not None]
    if not tuned:
        return
    yield (
        "How they were tuned: settings drawn at random, the defaults first, on validation bodies; the score is the "
        "action loss on demonstrations that no method has seen. It ranks settings of one method, not methods."
    )
    rows = []
    for result in tuned:
        best, trials = result["trials"][result["best"]], result["trials"]
        settings = ", ".join(f"{name} {setting(best['config'], name)}" for name in result["search"])
        losses = ["-" if trial["score"] is None else f"{trial['score']:.3f}" for trial in (trials[0], best)]
        rows.append([result["method"], str(len(trials)), str(len(result["bodies"])), *losses, settings])
    yield markdown(("method", "trials", "bodies", "loss with the defaults", "with the best", "the best"), rows)


def over_play(cells: Sequence[CellResult], picture: str) -> Iterator[str]:
    """Success by the amount that was given, and how much is needed; `picture` is theirs, as the page sees it."""
    found = varied(cells)
    if not found:
        return
    yield "## How much does it take?"
    yield "Success after so many trajectories of play or, for methods that learn from them, demonstrations."
    yield f"![Success by the amount that was given]({picture})"
    curves = [(cell.name, method, curve) for cell in found for method, curve in cell.success_by_amount().items()]
    amounts = sorted({amount for _, _, curve in curves for amount in curve})
    rows = [
        [name, method, *(percent(curve[n].to_dict()) if n in curve else "-" for n in amounts)]
        for name, method, curve in curves
    ]
    yield markdown(("unseen", "method", *map(str, amounts)), rows)
    told = [speed_line(speed) for cell in found for speed in cell.speeds]
    if told:
        yield "\n".join(f"- {line}" for line in told)


def typical_bodies(films: Path, seen: Path) -> Iterator[str]:
    """Films of bodies in the middle of their scenario and task; `seen` is their folder as the page sees it."""
    found = read_films(films)
    if not found:
        return
    yield "### Typical bodies"
    yield (
        "The body in the middle of each scenario and task, by what it misses after aligning; on the left before "
        "it, on the right after it, in the first scenes that were measured (`selfalign bench films --which typical`):"
    )
    for film in found:
        yield f"![{film['body']}, before and after aligning]({(seen / film['file']).as_posix()})"
        yield f"*{caption(film)}*"


def fails(cells: Sequence[CellResult]) -> Iterator[str]:
    """What still fails after aligning."""
    missed = worst(cells, OF_EACH, LISTED)
    if not missed:
        return
    yield "## Where it fails"
    yield f"{TEXT} [In words, with films](where_it_fails.md)."
    naming = Naming.of(cells)
    yield markdown((*naming.columns, *CELL_COLUMNS), cell_rows(cells, naming))
    yield f"The {len(missed)} bodies that miss most, at most {OF_EACH} of each:"
    yield markdown(("body", *naming.columns, *BODY_COLUMNS), body_rows(missed, naming))


def verdicts(attempts: Sequence[Attempt], picture: str) -> Iterator[str]:
    """How good verdicts are; `picture` is that of `verdicts_figure`, as the page sees it."""
    if not attempts:
        return
    found = confusion(attempts)
    yield "## Are verdicts right?"
    yield (
        "An attempt is a context of a body that the calibration was not fitted to: after a number of steps, as `align` "
        "returned it, another body's, or a random update; of the shipped checkpoint and of the trainings of *What is "
        "rehearsal worth?*, each once. Those of the shipped checkpoint are judged by its calibration, which is of how "
        "it acts now: of the many in which it acted as it was trained, no success is expected. An attempt "
        "*gained* if success after - success before > 0 in the same scenes; accepted without gain is a false accept. "
        "Where `align` has rejected a fit, the body acted under the prior, and there is no attempt. A verdict's null "
        "is a random update, so rejecting those is no achievement: the curves say what is left without."
    )
    yield markdown(VERDICT_COLUMNS, verdict_rows(attempts))
    curves = verdict_curves(attempts)
    if curves:
        yield f"![ROC of verdicts, expected against measured success]({picture})"
        areas = [f"{name} {curve.area.short()}" for name, curve in curves.items()]
        yield f"Areas under the ROC curves, with a bootstrap over bodies: {'; '.join(areas)}."
    yield how_much(attempts)
    if found.false_accepts:
        named = [[a.cell, a.body, label(a.kind), f"{100 * a.gain:+.0f} %"] for a in found.false_accepts]
        yield markdown(("false accept: unseen", "body", "context", "gain"), named)


def how_much(attempts: Sequence[Attempt]) -> str:
    """By how many points accepted attempts gained: one episode more is a gain, too."""
    gains = [a.gain for a in attempts if a.verdict.accepted and a.verdict.expected is not None and a.kind != BEFORE]
    few, half = (sum(gain < points for gain in gains) for points in (0.25, 0.5))
    return (
        f"One episode more is a gain, too. Of {len(gains)} accepted attempts of which success was expected, {few} "
        f"gained less than 25 points and {half} less than 50."
    )


def verdicts_figure(attempts: Sequence[Attempt]) -> "Figure":
    """How good verdicts are."""
    return figures.verdict_quality(verdict_curves(attempts), confusion(attempts), reliability(attempts))


def demo(result: dict[str, Any]) -> Iterator[str]:
    """One body of each scenario."""
    yield "## The demo"
    made = result["provenance"]
    yield f"`{made['command']}`, {made['seconds']:.0f} s; Wilson's intervals over episodes."
    rows = []
    for row in result["bodies"]:
        verdict, success = row["verdict"], row["success"]
        loss = f"{drop(verdict)} (null {verdict['null']:.2f})"
        rows.append([row["scenario"], percent(success["before"]), percent(success["aligned"]), loss])
    yield markdown(("unseen", "before", "after", "held-out play loss"), rows)


def experts(result: dict[str, Any] | None) -> Iterator[str]:
    """What the tasks' scripted experts reach: the demonstrations' quality."""
    if result is None:
        return
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    robots = list(dict.fromkeys(row["robot"] for row in result["rows"]))
    rates = {(row["robot"], row["task"]): f"{100 * row['rate']:.0f} %" for row in result["rows"] if row["offered"]}
    yield "## Scripted experts"
    yield "Success of the experts that give the demonstrations, 100 episodes each; a dash: the task is not offered."
    yield markdown(("robot", *tasks), [[robot, *(rates.get((robot, task), "-") for task in tasks)] for robot in robots])


def leak(result: dict[str, Any] | None) -> Iterator[str]:
    """Labels that reach an output through layers."""
    if result is None:
        return
    yield "## Labels that leak through attention"
    yield "What dynamics' output takes from its label, over what it may read: [attention_masks.md](attention_masks.md)."
    found = {name: row["gradient of the label by depth"] for name, row in result["results"].items()}
    depths = list(next(iter(found.values())))
    rows = [[name, *(f"{row[depth]:.3g}" for depth in depths)] for name, row in found.items()]
    yield markdown(("layers", *depths), rows)


def other_methods(cell: CellResult) -> list[str]:
    """Other ways than aligning that were measured beside it."""
    if not any("costs" in row for row in cell.rows):
        return []
    return [name for name in cell.conditions if name not in MAIN and AT not in name]


def at_one_amount(cell: CellResult) -> list[str]:
    """Those of them that were given one amount; the others are a curve."""
    amounts = cell.success_by_amount()
    return [name for name in other_methods(cell) if name not in amounts]


def plain(cells: Sequence[CellResult]) -> list[CellResult]:
    """Those of aligning and its controls alone, at one amount of free play."""
    free = [cell for cell in cells if motion_of(cell) == FREE]
    return [cell for cell in free if not other_methods(cell) and not cell.success_by_amount()]


def varied(cells: Sequence[CellResult]) -> list[CellResult]:
    """Those in which something was given in several amounts."""
    return [cell for cell in cells if cell.success_by_amount()]


# ---- helpers -------------------------------------------------------------------------------------------------------


def _origin(path: Path, data: Any) -> list[str]:
    told = data.get("provenance", data) if isinstance(data, dict) else {}
    cells = data.get("matrix", data).get("cells", ()) if told else ()
    commits = sorted({commit for cell in cells for commit in _commits(cell)}) or [told.get("commit") or "unknown"]
    finished = str(told.get("finished", "unknown"))[:10]
    return [path.name, f"`{told.get('command', 'unknown')}`", ", ".join(commits), finished]


def _commits(cell: Mapping[str, Any]) -> set[str]:
    """Rows of a cache may be older than the cell that they are put together in; those from before do not say."""
    rows = {row["commit"] for row in cell.get("bodies", ()) if row.get("commit")}
    own = cell.get("provenance", {}).get("commit")
    return rows or ({own} if own else set())


def main(config: Config) -> None:
    found, where = Results.open(config.results), config.figure.relative_to(config.page.parent).as_posix()
    found.check_shipped()
    config.page.write_text(page(config.results, where, config.films), encoding="utf-8")
    attempts, cells = found.attempts, plain(found.shipped)
    drawn = {config.figure.with_name(VERDICTS): verdicts_figure(attempts)}
    expecting = [attempt for attempt in attempts if attempt.verdict.expected is not None]
    drawn[config.figure.with_name("calibration.svg")] = figures.calibration_curve(shipped_calibration(), expecting)
    shown = as_shipped(cells)
    naming = Naming.of(shown)
    drawn[config.figure] = figures.overview(shown, [", ".join(naming.row(cell)) for cell in shown])
    if amounts := varied(found.shipped):
        drawn[config.figure.with_name(AMOUNTS)] = figures.over_amounts(amounts)
    curves = [cell for cell in cells if 10 in cell.success_by_steps()][: figures.TOGETHER]
    drawn[config.curves] = figures.over_steps(curves)
    for scale, files in by_scale(found.recipes).items():
        if recipes := measured(files):
            drawn[config.figure.with_name(PICTURES[scale])] = recipes_figure(recipes)
    for path, picture in drawn.items():
        path.write_text(figures.svg(picture), encoding="utf-8")
    print(f"{config.page}, {config.figure} and {config.curves}")


if __name__ == "__main__":
    main(tyro.cli(Config))
