"""The figures of `selfalign bench report`, by matplotlib (extra `report`), for the page and for the PDF alike."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from selfalign.bench.attempts import AT, Attempt
from selfalign.bench.stats import Interval
from selfalign.bench.tables import label
from selfalign.calibration import Calibration
from selfalign.report.quality import Confusion, Reliability, Roc
from selfalign.report.results import STEPS, CellResult
from selfalign.sim.bodies import BodySpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
MORE = ("#000000", "#8cd17d", "#d4a6c8", "#499894", "#79706e")
"""For an overview of many methods."""
SHOWN = {"before": 3, "aligned": 2, "oracle": 0, "swap": 1, "stale": 6, "random": 7}
"""Contexts of the overview, and their colours."""
PANELS = 6
"""Cells of `over_amounts`, at most."""
TOGETHER = len(COLOURS)
"""Curves in one figure, at most."""


def new_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure of inches, and its axes from left to right, row by row.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'selfalign[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def plain(text: str) -> str:
    """As it is: what stands between two `$` would be taken for a formula."""
    return text.replace("$", r"\$")


def svg(figure: "Figure") -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "selfalign", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def overview(cells: Sequence[CellResult], names: Sequence[str]) -> "Figure":
    """Success of each cell under the main contexts, with intervals; `names` stand beside the cells."""
    figure, (axis,) = new_figure(1, 1, 9, 1.3 + 0.62 * len(cells))
    contexts = shown(cells)
    free = [colour for i, colour in enumerate(COLOURS + MORE) if i not in SHOWN.values()]
    for index, name in enumerate(contexts):
        colour = COLOURS[SHOWN[name]] if name in SHOWN else free[(index - len(SHOWN)) % len(free)]
        found = [(i, cell.success(name)) for i, cell in enumerate(cells) if name in [*cell.conditions, *_oracle(cell)]]
        if found:
            offset = 0.65 / max(5, len(contexts)) * (index - (len(contexts) - 1) / 2)
            _whiskers(axis, [v for _, v in found], [i + offset for i, _ in found], colour, label(name))
    axis.set_yticks(range(len(cells)), list(map(plain, names)))
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(-2, 102)
    axis.set_xlabel("success, %")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def recipes(panels: Mapping[str, Mapping[str, CellResult]]) -> "Figure":
    """Success by recipe, as they act before and after aligning, with intervals; a panel for each scenario.

    Args:
        panels: cells by recipe, by the panel's title. The line is where the first recipe is after aligning.
    """
    names = list(dict.fromkeys(name for cells in panels.values() for name in cells))
    figure, axes = new_figure(1, len(panels), 1.6 + 3.6 * len(panels), 1.2 + 0.34 * len(names))
    for axis, (title, cells) in zip(axes, panels.items(), strict=True):
        for condition, offset in (("oracle", -0.22), ("aligned", 0.0), ("before", 0.22)):
            found = {name: cell for name, cell in cells.items() if condition in [*cell.conditions, *_oracle(cell)]}
            if not found:
                continue
            at = [names.index(name) + offset for name in found]
            values = [cell.success(condition) for cell in found.values()]
            _whiskers(axis, values, at, COLOURS[SHOWN[condition]], label(condition))
            if condition == "aligned" and names[0] in found:
                axis.axvline(100 * values[0].value, color="black", linestyle="--", linewidth=0.8)
        axis.set(xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5), xlabel="success, %")
        axis.set_yticks(range(len(names)), list(map(plain, names)) if axis is axes[0] else [""] * len(names))
        axis.set_title(plain(title), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def shown(cells: Sequence[CellResult]) -> list[str]:
    """Contexts and methods of the overview: the main ones, then what else was tried at one amount."""
    found = dict.fromkeys(name for cell in cells for name in cell.conditions)
    others = [name for name in found if name not in SHOWN and AT not in name and not name.startswith(STEPS)]
    return [name for name in SHOWN if name in found or name == "oracle"] + others


def over_amounts(cells: Sequence[CellResult]) -> "Figure":
    """Success by the amount that methods were given, a panel for each cell, with intervals over bodies."""
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = new_figure(rows, columns, 3.6 * columns + 0.4, 3.2 * rows + 0.4)
    methods = list(dict.fromkeys(method for cell in cells for method in cell.success_by_amount()))
    for axis, cell in zip(axes, cells, strict=False):
        curves = cell.success_by_amount()
        for method, curve in curves.items():
            _band(axis, curve, 100, COLOURS[methods.index(method) % len(COLOURS)], method)
        if _oracle(cell):
            axis.axhline(100 * cell.success("oracle").value, color="black", linestyle="--", linewidth=0.8)
        amounts = sorted({amount for curve in curves.values() for amount in curve})
        axis.set_xscale("log")
        axis.set_xticks(amounts, [str(amount) for amount in amounts])
        axis.minorticks_off()
        axis.set_ylim(-2, 102)
        axis.set_xlabel("trajectories of play, or demonstrations", fontsize=8)
        axis.set_title(plain(cell.name).replace(" (", "\n("), fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[len(cells) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("success, %")
    handles = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def _oracle(cell: CellResult) -> list[str]:
    return [name for name in cell.seen if name == "oracle"]


def _whiskers(axis: "Axes", values: list[Interval], at: list[float], colour: str, name: str) -> None:
    """Means of success as dots over their intervals, percent, along x."""
    for value, y in zip(values, at, strict=True):
        if value.low is not None and value.high is not None:
            axis.plot([100 * value.low, 100 * value.high], [y, y], color=colour, linewidth=2, alpha=0.6)
    axis.plot([100 * value.value for value in values], at, "o", color=colour, markersize=5, label=name, clip_on=False)


def over_steps(cells: Sequence[CellResult]) -> "Figure":
    """Success and held-out play loss over alignment steps, with intervals over bodies."""
    successes, losses = ([of(cell) for cell in cells] for of in (CellResult.success_by_steps, CellResult.loss_by_steps))
    panels = [("success, %", 100, successes), ("held-out play loss", 1, losses)]
    panels = [panel for panel in panels if any(panel[2])]
    figure, axes = new_figure(1, len(panels), 5 * len(panels), 4.2)
    for axis, (what, scale, curves) in zip(axes, panels, strict=True):
        for cell, curve, colour in zip(cells, curves, COLOURS, strict=False):
            _band(axis, curve, scale, colour, plain(cell.name))
        axis.set_xscale("symlog", linthresh=10, linscale=0.5)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        ticks = sorted({int(step) for line in axis.lines for step in np.asarray(line.get_xdata())})
        some = [tick for tick in ticks if tick in (0, 10, 30, 100, 300, 1000)]
        named = some if len(some) > 2 else ticks
        axis.set_xticks(named, [str(tick) for tick in named])
        axis.minorticks_off()
        axis.set_xlabel("alignment steps")
        axis.set_ylabel(what)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(3, max(1, len(labels))), frameon=False, fontsize=9
    )
    return figure


def _band(axis: "Axes", curve: Mapping[int, Interval], scale: float, colour: str, name: str) -> None:
    if not curve:
        return
    steps, values = list(curve), list(curve.values())
    axis.plot(steps, [scale * v.value for v in values], "o-", color=colour, markersize=3, linewidth=1.5, label=name)
    ends = [(v.value if v.low is None else v.low, v.value if v.high is None else v.high) for v in values]
    axis.fill_between(
        steps, [scale * low for low, _ in ends], [scale * high for _, high in ends], color=colour, alpha=0.18
    )


def verdict_quality(curves: Mapping[str, Roc], found: Confusion, reliable: Sequence[Reliability]) -> "Figure":
    """ROC of accepting, and expected against measured success where there is a calibration."""
    figure, axes = new_figure(1, 2 if reliable else 1, 10 if reliable else 5, 4.4)
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        told = f"{name}: area {curve.area.short()}"
        axes[0].plot(curve.false_accept_rate, curve.accept_rate, color=colour, drawstyle="steps-post", label=told)
    if found.operating_point is not None:
        axes[0].plot(*found.operating_point, "k*", markersize=12, label="the verdicts", clip_on=False, zorder=9)
    _diagonal(axes[0], "accepted, of attempts without gain", "accepted, of attempts that gained")
    if reliable:
        expected, measured = [r.expected for r in reliable], [r.measured for r in reliable]
        for x, value in zip(expected, measured, strict=True):
            if value.low is not None and value.high is not None:
                axes[1].plot([x, x], [value.low, value.high], color=COLOURS[0], alpha=0.6, linewidth=2)
        axes[1].plot(expected, [v.value for v in measured], "o", color=COLOURS[0], clip_on=False)
        _diagonal(axes[1], "expected success", "measured success")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=2 if reliable else 1, frameon=False, fontsize=9)
    return figure


def _diagonal(axis: "Axes", x: str, y: str) -> None:
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axis.grid(alpha=0.3)


def calibration_curve(calibration: Calibration, attempts: Sequence[Attempt]) -> "Figure":
    """Success by held-out play loss: the attempts, and the curve through them."""
    figure, (axis,) = new_figure(1, 1, 9, 4.2)
    kinds = list(dict.fromkeys(attempt.kind for attempt in attempts))
    jitter = np.random.default_rng(0)
    for number, kind in enumerate(kinds):
        colour, marker = COLOURS[number % len(COLOURS)], ".x^"[number // len(COLOURS) % 3]
        chosen = [attempt for attempt in attempts if attempt.kind == kind]
        heights = [100 * a.success + jitter.uniform(-1.2, 1.2) for a in chosen]
        axis.plot([a.loss for a in chosen], heights, marker, color=colour, alpha=0.7, label=label(kind))
    loss = np.asarray(calibration.loss)
    low, value, high = (100 * np.asarray(y) for y in (calibration.low, calibration.success, calibration.high))
    axis.plot(loss, value, color="black", linewidth=1.5, label="expected")
    axis.fill_between(loss, low, high, color="black", alpha=0.12, linewidth=0)
    axis.axvspan(*calibration.seen, color=COLOURS[2], alpha=0.12, linewidth=0, label="play losses that were seen")
    if calibration.ample is not None:
        axis.axvline(calibration.ample.loss, color=COLOURS[2], linewidth=1, label="greatest after much play")
    axis.set(xlabel="held-out play loss", ylabel="success, %", ylim=(-4, 104))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def context_map(
    points: Float[np.ndarray, "N 2"], shares: Sequence[float], bodies: Sequence[BodySpec | None]
) -> "Figure":
    """Contexts in two dimensions, coloured by robot, by camera and by action frame.

    Args:
        points: principal components.
        shares: of the variance that each of the two explains.
        bodies: whose contexts they are; None where nothing is known.
    """
    figure, axes = new_figure(1, 3, 12, 4.3)
    known = np.array([body is not None for body in bodies])
    for axis in axes:
        axis.plot(*points[~known].T, ".", color="#cccccc")
        axis.set_xlabel(f"first component ({100 * shares[0]:.0f} % of variance)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"second component ({100 * shares[1]:.0f} %)")
    told = [body for body in bodies if body is not None]
    arms = sorted({body.arm for body in told})
    for arm, colour in zip(arms, COLOURS * 3, strict=False):
        chosen = np.array([body is not None and body.arm == arm for body in bodies])
        axes[0].plot(*points[chosen].T, "o", color=colour, label=arm, markersize=6)
    axes[0].set_title("robot", fontsize=10)
    if arms:
        axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
        _coloured(axes[1], points[known], [body.camera.azimuth for body in told], "bearing of the camera", "viridis")
        _coloured(axes[2], points[known], [_azimuth(body) for body in told], "action frame: where x goes", "twilight")
    return figure


def _coloured(axis: "Axes", points: np.ndarray, values: Sequence[float], title: str, colours: str) -> None:
    drawn = axis.scatter(*points.T, c=values, cmap=colours, s=32)
    axis.set_title(title, fontsize=10)
    bar: Any = axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("degrees", fontsize=8)


def _azimuth(body: BodySpec) -> float:
    """Degrees; 0 for bodies that are moved by their joints."""
    return float(getattr(body.action_space.frame, "x_azimuth", 0.0))
