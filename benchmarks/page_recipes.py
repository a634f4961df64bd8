"""The page of results on other trainings than the shipped one: of schemes, of seeds, and longer ones."""

from collections.abc import Iterator, Sequence

from page_adaptation import by_acting, told_acting
from page_tables import MAIN, conditions, markdown
from result_files import ABLATION, play_of, same_test

from selfalign.bench.stats import bootstrap_mean
from selfalign.bench.tables import label, percent
from selfalign.report.results import CellResult

MORE_STEPS = "3,000 more steps"
"""What cells are called of the checkpoint that learned on."""


def schemes(cells: Sequence[CellResult]) -> Iterator[str]:
    """What becomes of the recipe when something is changed."""
    if not cells:
        return
    yield "## What is rehearsal worth?"
    yield (
        "2,000 steps, a fifth of the shipped checkpoint's; one vision tower. *rehearsal*: as shipped. *per_body*: a "
        "learned context for each source body. *global*: one for all; in these two the action loss moves the contexts, "
        "and bodies are aligned at a constant rate. *one_camera*: rehearsed on 60 rigs that share a camera (the "
        "others: 300 rigs, a camera each). *per_body* lowers the play loss nearly as far as *rehearsal*, and fails: "
        "low play loss alone proves nothing. That is the action loss's doing in so short a training "
        "([ablations](#ablations-2500-steps): *no-rehearsal* beside *no-rehearsal-attached*). How they were "
        "trained is in [benchmarks/README.md](../benchmarks/README.md#ablations)."
    )
    shown = [name for name in MAIN if any(name in conditions(cell) for cell in cells)]
    rows = []
    for cell in cells:
        scheme, scenario = cell.path.stem.removeprefix(ABLATION).rsplit("_", 1)
        losses = [bootstrap_mean([row["verdict"][when] for row in cell.rows]) for when in ("before", "after")]
        told = " -> ".join(f"{loss.value:.2f}" for loss in losses)
        found = [percent(cell.success(name).to_dict()) for name in shown]
        rows.append([scheme, scenario, str(len(cell.rows)), told, *found])
    yield markdown(("training", "unseen", "bodies", "held-out play loss", *map(label, shown)), rows)


def seeds(shipped: Sequence[CellResult], again: Sequence[CellResult]) -> Iterator[str]:
    """The shipped recipe trained again with other seeds, beside the shipped checkpoint on the same bodies."""
    if not again:
        return
    trained = list(dict.fromkeys(_training(cell) for cell in again))
    yield "## Is it the training's seed?"
    yield (
        "The shipped recipe, trained again with other seeds: of the weights, the bodies that are drawn and the noise; "
        "vision tower and recordings are the same. Each is aligned on the same unseen bodies and acts in the same "
        "scenes. The last column is the mean over trainings and, in brackets, the lowest and the highest of them."
    )
    names = (f"seed {training.partition('/')[2]}" for training in trained)
    columns = "unseen", "", "seed 0 (shipped)", *names, "mean"
    for acting, group in by_acting(shipped).items():
        rows = [row for first in group for row in _beside(first, again, trained)]
        if rows:
            yield f"{told_acting(acting)} ({acting}):"
            yield markdown(columns, rows)


def practice(cells: Sequence[CellResult]) -> Iterator[str]:
    """The shipped checkpoint, and what comes of it where it learns on and is shown more of pushing and lifting."""
    if not cells:
        return
    yield "## Does more practice help?"
    yield (
        "The shipped checkpoint after its 10,000 steps, in which 93 % of the frames of demonstrations that it was "
        "shown are of reaching, and after 3,000 more on the same recordings, in which 57 % are (22 % pushing, 21 % "
        "lifting). Validation bodies, aligned after 20 trajectories; the difference is on the same bodies and in the "
        "same scenes, in percentage points."
    )
    later = {(cell.settings["task"], cell.settings["scenario"]): cell for cell in cells if MORE_STEPS in cell.name}
    rows = []
    for first in (cell for cell in cells if MORE_STEPS not in cell.name):
        task, scenario = first.settings["task"], first.settings["scenario"]
        then = later[task, scenario]
        found = [cell.success("aligned").percent() for cell in (first, then)]
        rows.append([scenario, task, str(len(first.rows)), *found, then.less(first, "aligned").points()])
    yield markdown(("unseen", "task", "bodies", "10,000 steps", MORE_STEPS, "difference"), rows)


def _beside(first: CellResult, again: Sequence[CellResult], trained: Sequence[str]) -> Iterator[list[str]]:
    """Rows of a cell of the shipped checkpoint, if every other training was measured alike."""
    found = {_training(cell): cell for cell in again if _same_test(cell, first)}
    cells = [first, *(found[training] for training in trained if training in found)]
    if len(cells) > len(trained):
        known = [name for name in ("before", "aligned", "oracle") if all(name in conditions(cell) for cell in cells)]
        yield from (_over_seeds(cells, name) for name in known)


def _over_seeds(cells: Sequence[CellResult], condition: str) -> list[str]:
    found = [cell.success(condition) for cell in cells]
    values = [100 * interval.value for interval in found]
    mean = f"{sum(values) / len(values):.0f} % [{min(values):.0f}, {max(values):.0f}]"
    settings = cells[0].settings
    return [f"{settings['scenario']}, {settings['task']}", label(condition), *(i.percent() for i in found), mean]


def _training(cell: CellResult) -> str:
    """`recipe/seed` of an ablation's cell."""
    return cell.name.split(":")[0]


def _same_test(cell: CellResult, other: CellResult) -> bool:
    """Whether two checkpoints were measured alike."""
    alike = same_test(cell, other) and cell.settings["bodies"] == other.settings["bodies"]
    return "oracle" in other.seen and alike and play_of(cell) == play_of(other)
