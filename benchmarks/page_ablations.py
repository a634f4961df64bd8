"""The page of results on ablations: recipes that differ from the shipped one in one thing, a row for each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from page_tables import conditions, markdown
from result_files import acting_of

from selfalign.ablation.recipes import RECIPES, SCALES, ScaleName
from selfalign.bench.tables import drop
from selfalign.report import figures
from selfalign.report.reading import read_cells
from selfalign.report.results import CellResult
from selfalign.sim.regions import SCENARIOS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Files = Mapping[Path, dict[str, Any]]
"""Results of `bench ablate`, by their paths."""
Measured = dict[str, dict[str, CellResult]]
"""Cells by recipe, and of a recipe by scenario."""
PICTURES: Mapping[ScaleName, str] = {"ablation": "ablation.svg", "shipped": "ablation_shipped.svg"}
FIRST = "all"
"""The recipe that the others differ from, in trainings with the same seed."""
COLUMNS = ("play loss", "aligned", "oracle", "less the first")


def ablations(files: Files, pictures: Path, pushed: Sequence[CellResult] = ()) -> Iterator[str]:
    """What each recipe comes to.

    Args:
        files: of `bench ablate`.
        pictures: where `PICTURES` are, as the page sees it.
        pushed: the same recipes at the shipped scale, in pushing.
    """
    for scale, group in by_scale(files).items():
        told = ", ".join(f"`{path.name}`" for path in group)
        yield f"## Ablations: {SCALES[scale].steps:,} steps"
        yield (
            f"{told}. Each recipe differs from the first in one thing; all share one vision tower "
            "([what they are](benchmark.md#ablations)). *Play loss* is that of held-out play before and after "
            "aligning, the oracle is bodies of seen kinds, aligned; the difference is to the first recipe of the same "
            "seed, on the same bodies and in the same scenes, in percentage points, with the interval of a bootstrap "
            "over bodies."
        )
        found = measured(group)
        if found:
            yield f"![Success by recipe]({(pictures / PICTURES[scale]).as_posix()})"
            yield from _table(found, group)
        if scale == "shipped" and pushed:
            yield from pushing(pushed, group)
        failed = [[t["label"], t["error"]] for file in group.values() for t in file["trainings"] if "error" in t]
        if failed:
            yield markdown(("training that failed", "why"), failed)


def pushing(cells: Sequence[CellResult], files: Files) -> Iterator[str]:
    """What recipes come to in pushing; `files` say what each is."""
    told, (first, *_) = ", ".join(f"`{name}`" for name in sorted({cell.path.name for cell in cells})), cells
    acting = acting_of(first)
    yield (
        f"The same trainings in **pushing**, on {len(first.rows)} validation bodies, acting as the shipped checkpoint "
        f"does (speed {acting.speed:g}, temperature {acting.temperature:g}; {told}):"
    )
    yield from _table(by_recipe(cells), files)


def by_scale(files: Files) -> dict[ScaleName, dict[Path, dict[str, Any]]]:
    """Results whose recipes trained as long, together."""
    groups: dict[ScaleName, dict[Path, dict[str, Any]]] = {}
    for path, result in files.items():
        groups.setdefault(result["scale"]["name"], {})[path] = result
    return groups


def measured(files: Files) -> Measured:
    """The cells of some results in the order of `RECIPES` and of seeds; what several have is that of the first."""
    return by_recipe(read_cells([path for path, result in files.items() if "matrix" in result]))


def by_recipe(cells: Iterable[CellResult]) -> Measured:
    """Cells in the order of `RECIPES` and of seeds."""
    found: Measured = {}
    for cell in cells:
        found.setdefault(cell.name.split(":")[0], {}).setdefault(cell.settings["scenario"], cell)
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _place(training: str) -> tuple[int, str]:
    """Of a training, `recipe` or `recipe/seed`, among the others."""
    order, (recipe, _, seed) = list(RECIPES), training.partition("/")
    return order.index(recipe) if recipe in order else len(order), seed


def recipes_figure(found: Measured) -> "Figure":
    """Success by recipe, a panel for each scenario."""
    panels: dict[str, dict[str, CellResult]] = {}
    for name, cells in found.items():
        for scenario, cell in cells.items():
            panels.setdefault(f"unseen: {scenario}", {})[name] = cell
    return figures.recipes(panels)


def _table(found: Measured, files: Files) -> Iterator[str]:
    about = {training["label"]: training["about"] for file in files.values() for training in file["trainings"]}
    scenarios = [scenario for scenario in SCENARIOS if any(scenario in cells for cells in found.values())]
    rows = []
    for name, cells in found.items():
        first = found.get(FIRST + "".join(name.partition("/")[1:]), {})
        values = (_values(cells.get(scenario), first.get(scenario)) for scenario in scenarios)
        rows.append([name, about.get(name) or _about(name), *(value for of in values for value in of)])
    heads = [f"{scenario}: {name}" if name == COLUMNS[0] else name for scenario in scenarios for name in COLUMNS]
    yield markdown(("recipe", "", *heads), rows)
    before = [cell.success("before").value for cells in found.values() for cell in cells.values() if _has_prior(cell)]
    if before:
        yield f"Before aligning, no recipe succeeds in more than {100 * max(before):.0f} % of episodes."


def _about(training: str) -> str:
    recipe = RECIPES.get(training.partition("/")[0])
    return "" if recipe is None else recipe.about


def _values(cell: CellResult | None, first: CellResult | None) -> list[str]:
    """Of `COLUMNS`."""
    if cell is None:
        return ["-"] * len(COLUMNS)
    known = conditions(cell)
    success = [cell.success(name).percent() if name in known else "-" for name in ("aligned", "oracle")]
    both = first is not None and first is not cell and "aligned" in known and "aligned" in conditions(first)
    return [_loss(cell), *success, cell.less(first, "aligned").points() if both else "-"]


def _loss(cell: CellResult) -> str:
    """Means over bodies before and after aligning; a recipe without alignment losses has none."""
    told = [row["verdicts"]["aligned"] for row in cell.rows if "aligned" in row.get("verdicts", {})]
    finite = [verdict for verdict in told if verdict["before"] and verdict["after"]]
    return drop({when: mean(verdict[when] for verdict in finite) for when in ("before", "after")}) if finite else "-"


def _has_prior(cell: CellResult) -> bool:
    return "before" in conditions(cell)
