"""The page of results on aligning itself: success of unseen bodies, as the shipped checkpoint acts and otherwise."""

from collections.abc import Iterator, Sequence

from page_tables import MAIN, conditions, markdown
from result_files import acting_of, shipped_acting

from selfalign.acting import Acting
from selfalign.bench.tables import label, percent
from selfalign.report.results import CellResult
from selfalign.sim.regions import SCENARIOS
from selfalign.sim.tasks import KINDS


def adaptation(cells: Sequence[CellResult], figure: str) -> Iterator[str]:
    """Success before and after aligning; `figure` is that of `as_shipped`."""
    if not cells:
        return
    yield "## Does a body act better after its own play?"
    yield (
        "Success on bodies that the checkpoint has never had: means over bodies with the 95 % interval of a bootstrap "
        "over bodies. A random update is as large as the alignment's, *another body's* is another unseen body's, and "
        "the oracle is aligned bodies of the kinds that the checkpoint was trained on."
    )
    for acting, group in by_acting(cells).items():
        yield f"### {told_acting(acting)}: {acting}"
        if acting == shipped_acting():
            yield f"![Success on unseen bodies]({figure})"
        yield _table(group)
    costs = [[cell.name, *_costs(cell)] for cell in cells if all("seconds" in row for row in cell.rows)]
    if costs:
        yield "What a body costs, on average, in seconds; the context is what is fitted."
        yield markdown(("unseen", "play", "align", "robot's own time of play", "context"), costs)


def by_acting(cells: Sequence[CellResult]) -> dict[Acting, list[CellResult]]:
    """Cells by how bodies acted; first as the shipped checkpoint does."""
    groups: dict[Acting, list[CellResult]] = {}
    for cell in sorted(cells, key=lambda cell: acting_of(cell) != shipped_acting()):
        groups.setdefault(acting_of(cell), []).append(cell)
    return groups


def as_shipped(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells in which bodies acted as the shipped checkpoint does, and those of scenarios of which there is no such."""
    own = [cell for cell in cells if acting_of(cell) == shipped_acting()]
    there = {cell.settings["scenario"] for cell in own}
    return [*own, *(cell for cell in cells if cell.settings["scenario"] not in there)]


def told_acting(acting: Acting) -> str:
    """Whose way of acting it is."""
    known = {Acting(): "As it was trained", shipped_acting(): "As the shipped checkpoint acts"}
    return known.get(acting, "Otherwise")


def _table(cells: Sequence[CellResult]) -> str:
    """A row for each scenario, task and seed: what several files measured of the same bodies stands side by side."""
    rows: dict[tuple[int, int, int, int], list[CellResult]] = {}
    for cell in cells:
        told = cell.settings
        key = told["seed"], KINDS.index(told["task"]), SCENARIOS.index(told["scenario"]), len(cell.rows)
        rows.setdefault(key, []).append(cell)
    shown = [name for name in MAIN if any(name in conditions(cell) for cell in cells)]
    with_oracle = any("oracle" in conditions(cell) and "aligned" in conditions(cell) for cell in cells)
    lines = []
    for (seed, task, scenario, bodies), group in sorted(rows.items()):
        found = {name: cell.success(name) for cell in reversed(group) for name in conditions(cell)}
        values = [percent(found[name].to_dict()) if name in found else "-" for name in shown]
        if with_oracle:
            values.append(_of_oracle(group))
        lines.append([KINDS[task], SCENARIOS[scenario], str(seed), str(bodies), *values])
    ratio = ("aligned / oracle",) if with_oracle else ()
    return markdown(("task", "unseen", "seed", "bodies", *map(label, shown), *ratio), lines)


def _of_oracle(group: Sequence[CellResult]) -> str:
    """Of the first cell that has both."""
    for cell in group:
        if "aligned" in cell.conditions and "oracle" in cell.seen:
            return cell.of_oracle("aligned").short()
    return "-"


def _costs(cell: CellResult) -> list[str]:
    count = len(cell.rows)
    times = [f"{sum(row['seconds'][name] for row in cell.rows) / count:.0f}" for name in ("play", "align")]
    robot = sum(row["play"]["robot_seconds"] for row in cell.rows) / count
    return [*times, f"{robot:.0f}", f"{1000 * cell.rows[0]['context_megabytes']:.0f} kB"]
