"""What a report says, section by section, before anything is written as HTML or PDF."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from selfalign.bench.attempts import AT, Attempt
from selfalign.bench.matrix_table import speed_line
from selfalign.bench.subject import ALIGNED, BEFORE, RANDOM
from selfalign.bench.tables import label, percent
from selfalign.calibration import Calibration
from selfalign.report import figures
from selfalign.report.context_map import ContextMap
from selfalign.report.failures import (
    BODY_COLUMNS,
    CELL_COLUMNS,
    LISTED,
    OF_EACH,
    TEXT,
    accepted_body,
    accepted_of,
    body_rows,
    cell_rows,
    worst,
)
from selfalign.report.naming import Naming, file_names, traits
from selfalign.report.quality import (
    Roc,
    by_kind,
    confusion,
    expected_success,
    fitted,
    judged,
    loss_drop,
    reliability,
    roc,
)
from selfalign.report.results import ORACLE, CellResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 40
"""False accepts that are listed."""


@dataclass(frozen=True)
class Table:
    """Cells of text under heads."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    """Above it."""


@dataclass(frozen=True)
class Film:
    """A GIF with the words below it."""

    caption: str
    content: bytes


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    title: str
    text: str = ""
    figures: "Sequence[Figure]" = ()
    tables: Sequence[Table] = ()
    films: Sequence[Film] = ()


def sections(
    cells: Sequence[CellResult],
    calibration: Calibration | None = None,
    films: Sequence[Film] = (),
    maps: Sequence[ContextMap] = (),
    errors: Sequence[tuple[str, str]] = (),
    failing: Sequence[Film] = (),
) -> Iterator[Section]:
    """The report, first to last; sections without content are left out.

    Args:
        cells: what was measured.
        calibration: that judges the attempts anew.
        films: of before and after.
        maps: of contexts.
        errors: cells that were not measured, and why.
        failing: films of bodies that fail.
    """
    yield from success(cells)
    curves = [cell for cell in cells if cell.success_by_steps()]
    if curves:
        parts = [curves[i : i + figures.TOGETHER] for i in range(0, len(curves), figures.TOGETHER)]
        text = "Means over bodies; the bands are 95 % intervals of a bootstrap over bodies. Step 0 is the prior W0."
        yield Section("Over alignment steps", text, [figures.over_steps(part) for part in parts])
    growing = [cell for cell in cells if cell.success_by_amount()]
    if growing:
        parts = [growing[i : i + figures.PANELS] for i in range(0, len(growing), figures.PANELS)]
        text = "Given so many trajectories of play, or so many demonstrations. The dashed line is the oracle."
        needed = [[cell.name, speed_line(speed)] for cell in growing for speed in cell.speeds]
        tables = [Table(("cell", "adaptation speed"), needed)] if needed else []
        yield Section("Over play", text, [figures.over_amounts(part) for part in parts], tables)
    costly = [cell for cell in cells if any("costs" in row for row in cell.rows)]
    if costly:
        yield costs(costly)
    yield verdicts(judged(cells, calibration))
    if calibration is not None:
        own = [cell for cell in cells if cell.fingerprint == calibration.fingerprint]
        yield calibrated(calibration, [a for a in judged(own, calibration) if a.verdict.expected is not None])
    missed = worst(cells, OF_EACH, LISTED)
    if missed:
        naming = Naming.of(cells)
        tables = [
            Table((*naming.columns, *CELL_COLUMNS), cell_rows(cells, naming)),
            Table(("body", *naming.columns, *BODY_COLUMNS), body_rows(missed, naming)),
        ]
        yield Section("Where it fails", TEXT, tables=tables, films=failing)
    for found in maps:
        yield context_section(found)
    if films:
        yield Section("Films", "The same scenes before and after aligning.", films=films)
    if errors:
        yield Section("Failed", tables=[Table(("cell", "why"), errors)])
    yield commands(cells)


SUCCESS = "Success on unseen bodies"
SUCCESS_SAID = (
    "Success on bodies that the checkpoint has never had: mean over bodies, with the 95 % interval of a bootstrap over "
    "bodies. Every context of a body meets the same scenes with the same noise. Before is the prior W0, aligned what "
    "align returns; a random update of equal norm and another body's context are nulls; the oracle is aligned bodies "
    "of the kinds that were trained on. Differences are in percentage points, between the same bodies."
)


def success(cells: Sequence[CellResult]) -> Iterator[Section]:
    """How well held-out bodies act: a section for each matrix, and one for all files of another benchmark."""
    files, called = {}, file_names(cells)
    for cell in cells:
        name = called[cell.path].removesuffix(".json") if cell.label else _benchmark(cell)
        files.setdefault(name, []).append(cell)
    for number, (file, group) in enumerate(files.items()):
        naming = Naming.of(group)
        parts = [group[i : i + 12] for i in range(0, len(group), 12)]
        drawn = [figures.overview(part, [", ".join(naming.row(cell)) for cell in part]) for part in parts]
        tables = [_success_table(group, naming), *_difference_tables(group, naming)]
        title = f"{SUCCESS}: {file}" if len(files) > 1 else SUCCESS
        said = [*([] if number else [SUCCESS_SAID]), *([f"All: {naming.shared}."] if naming.shared else [])]
        yield Section(title, " ".join(said), drawn, tables)


def _benchmark(cell: CellResult) -> str:
    """`bench adapt`, say."""
    words = str(cell.provenance.get("command", "")).split()[1:]
    return " ".join(words[:2] if words[:1] == ["bench"] else words[:1]) or cell.path.stem


def _success_table(cells: Sequence[CellResult], naming: Naming) -> Table:
    main = [name for name in figures.shown(cells) if name != ORACLE]
    compared = any(ORACLE in cell.seen for cell in cells)
    judged = any(accepted_body(row) is not None for cell in cells for row in cell.rows)
    rows = []
    for cell in cells:
        values = [str(len(cell.rows)), *(_percent(cell, name) for name in main)]
        if compared:
            values += [_percent(cell, ORACLE), _of_oracle(cell)]
        if judged:
            values.append(accepted_of(cell.rows))
        rows.append([*naming.row(cell), *values])
    against = [ORACLE, "aligned / oracle"] if compared else []
    columns = (*naming.columns, "bodies", *map(_short, main), *against, *(["accepted"] if judged else []))
    return Table(columns, rows)


def _short(condition: str) -> str:
    return condition if condition in (BEFORE, ALIGNED) else label(condition)


def _difference_tables(cells: Sequence[CellResult], naming: Naming) -> Iterator[Table]:
    """What aligning is ahead of other ways to the same bodies, and of aligning with the first checkpoint."""
    ways = [name for name in figures.shown(cells) if name not in (BEFORE, ALIGNED, RANDOM, ORACLE)]
    both = [cell for cell in cells if ALIGNED in cell.conditions and {*ways} & {*cell.conditions}]
    if both:
        rows = [
            [*naming.row(cell), *(cell.gain(ALIGNED, way).points() if way in cell.conditions else "-" for way in ways)]
            for cell in both
        ]
        yield Table((*naming.columns, *map(label, ways)), rows, "Aligned, less other ways to the same bodies")
    first: dict[tuple[str, ...], CellResult] = {}
    rows = []
    for cell in cells:
        test = tuple(value for name, value in traits(cell).items() if name != "checkpoint")
        other = first.setdefault(test, cell)
        if other is not cell and ALIGNED in cell.conditions and ALIGNED in other.conditions:
            rows.append([*naming.row(cell), f"{cell.less(other, ALIGNED).points()} ({other.label})"])
    if rows and "checkpoint" in naming.columns:
        yield Table((*naming.columns, "aligned, less the first"), rows, "Checkpoints on the same bodies")


def _percent(cell: CellResult, condition: str) -> str:
    measured = condition in (*cell.conditions, *cell.seen)
    return percent(cell.success(condition).to_dict()) if measured else "-"


def _of_oracle(cell: CellResult) -> str:
    return cell.of_oracle(ALIGNED).short() if ALIGNED in cell.conditions and ORACLE in cell.seen else "-"


COSTS = {"robot_seconds": 1, "fit_seconds": 1, "peak_megabytes": 1, "bytes_stored": 1e3}
"""What a method takes, in the order of the table, and the unit that it is told in."""
COSTS_SAID = (
    "What it costs a body, on average over the bodies of a cell; of several cells, the cheapest and the dearest. The "
    "robot's time is of play and demonstrations together: what learns from demonstrations reads them in units of the "
    "play. Seconds are of runs under whatever load there was, and leave out what is "
    "made once (an encoder's training). Memory is that of the whole process, with the simulator, the policy and what "
    "was made before: what a method does not need, others may have left."
)


def costs(cells: Sequence[CellResult]) -> Section:
    """What methods take, on average over bodies."""
    means: dict[str, list[Mapping[str, float]]] = {}
    for cell in cells:
        for name in cell.conditions:
            found = [row["costs"][name] for row in cell.rows if name in row.get("costs", {})]
            if found and AT not in name:
                means.setdefault(name, []).append({cost: mean(of[cost] for of in found) for cost in found[0]})
    rows = [
        [label(name), str(len(of)), *(_between([one[cost] / unit for one in of]) for cost, unit in COSTS.items())]
        for name, of in means.items()
    ]
    columns = ("method", "cells", "robot's time, s", "fitting, s", "process's peak memory, MB", "kept for a body, kB")
    return Section("Costs", COSTS_SAID, tables=[Table(columns, rows)])


def _between(values: Sequence[float]) -> str:
    """The least and the greatest, or the one where they look alike."""
    low, high = (f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def verdicts(attempts: Sequence[Attempt]) -> Section:
    """Accept and reject against real gain."""
    text = (
        "An attempt is a context of a body: after some number of alignment steps, as align returned it, a random "
        "update, another body's. It gained if success after - success before > 0 in the same scenes. An attempt that "
        "was accepted without gain is a false accept. The areas under the curves are the chance that an attempt with "
        "gain scores higher than one without, with a bootstrap over bodies. A random update is what a verdict's null "
        "is, so none of them is accepted; one curve leaves them out. Where align has rejected a fit, the body acted "
        "under the prior, and there is no attempt. Bodies that the calibration was fitted to are left out."
    )
    found, curves = confusion(attempts), verdict_curves(attempts)
    if not curves:
        text += " Here every attempt gained or none did, so there is no curve."
    counts = Table(VERDICT_COLUMNS, verdict_rows(attempts))
    wrong = sorted(found.false_accepts, key=lambda a: a.gain)
    named = [
        [a.cell, a.body, label(a.kind), f"{a.loss:.3g}", f"{100 * a.before:.0f} %", f"{100 * a.success:.0f} %"]
        for a in wrong[:NAMED]
    ]
    tables = [counts]
    if named:
        tables.append(Table(("false accept: cell", "body", "context", "play loss", "before", "after"), named))
    if len(wrong) > NAMED:
        text += f" The {NAMED} worst of {len(wrong)} false accepts are named."
    reliable = reliability(attempts)
    drawn = [figures.verdict_quality(curves, found, reliable)] if curves or reliable else []
    return Section("Verdicts", text, drawn, tables)


VERDICT_COLUMNS = ("context", "accepted, gained", "accepted, no gain", "rejected, gained", "rejected, no gain")


def verdict_rows(attempts: Sequence[Attempt]) -> list[list[str]]:
    """Rows of `VERDICT_COLUMNS`: for each kind of context, and for all together."""
    found = {**{label(kind): own for kind, own in by_kind(attempts).items()}, "all": confusion(attempts)}
    return [[name, *map(str, of.counts)] for name, of in found.items()]


def verdict_curves(attempts: Sequence[Attempt]) -> dict[str, Roc]:
    """What can be drawn of: attempts by their play loss and by expected success, with and without random updates."""
    scored = {
        "drop of play loss": roc(attempts, loss_drop),
        "the same, without random updates": roc(fitted(attempts), loss_drop),
        "expected success": roc(attempts, expected_success),
        "that without random updates": roc(fitted(attempts), expected_success),
    }
    return {name: curve for name, curve in scored.items() if curve is not None}


def calibrated(calibration: Calibration, attempts: Sequence[Attempt]) -> Section:
    """The curve behind expected success."""
    settings = calibration.source.get("settings", {})
    text = (
        f"Success at {calibration.task} by held-out play loss, of {calibration.bodies} validation bodies (seed "
        f"{settings.get('seed', 'unknown')}), {calibration.attempts} contexts and {calibration.episodes} episodes: "
        "isotonic regression, with the wider of a bootstrap over bodies and Wilson's interval over episodes. The dots "
        "are the attempts of this report of which it expects something: by the same model, at this task, by bodies "
        "that acted as those. Beyond the play losses that were seen (and a tenth of them), verdicts reject"
    )
    text += "." if calibration.ample is None else "; as far beyond the line, they doubt fits to much play."
    return Section("What a play loss is worth", text, [figures.calibration_curve(calibration, attempts)])


def context_section(found: ContextMap) -> Section:
    """A map of contexts."""
    text = f"{len(found.points)} contexts W as vectors, projected on their first two principal components."
    if unknown := sum(body is None for body in found.bodies):
        text += f" {unknown} in grey are of bodies that the results do not describe."
    return Section("Map of contexts", text, [figures.context_map(found.points, found.shares, found.bodies)])


def commands(cells: Sequence[CellResult]) -> Section:
    """Where each number comes from."""
    rows = {}
    for cell in cells:
        made = cell.provenance
        machine = made.get("machine") or {}
        where = f"{machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores"
        rows[cell.path] = [
            cell.path.name,
            str(made.get("command", "unknown")),
            f"{made.get('commit') or 'unknown'}, model {cell.fingerprint or 'of several kinds'}",
            f"{made.get('finished', 'unknown')}, {where}",
        ]
    columns = ("file", "command", "commit", "made")
    return Section("Where the numbers come from", tables=[Table(columns, list(rows.values()))])
