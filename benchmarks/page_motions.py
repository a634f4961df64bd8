"""The page of results on how bodies play: other motion beside free motion of the same bodies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

from page_tables import markdown
from result_files import FREE, motion_of, played_freely

from selfalign.align.verdict import Verdict
from selfalign.bench.tables import label
from selfalign.report.results import CellResult


def motions(cells: Sequence[CellResult]) -> Iterator[str]:
    """Other motion as the body plays, beside free motion of the same bodies."""
    others = [cell for cell in cells if motion_of(cell) != FREE]
    if not others:
        return
    yield "## Does it matter how a body plays?"
    yield (
        "In all other tables the tip of the body is led about the workspace (*free*). Here bodies play otherwise. "
        "*axes*: as `selfalign play --robot` moves a real robot, by the dimensions of its action vector, all of them "
        "to random places and one by one, within their limits and a box that the tip may not leave; *brisk*: the same "
        "in that command's other tempo, up to the fastest action. *narrow*: the tip is led about 0.3 of the workspace. "
        "*demonstrations*: the body does the task, as often as others play. The difference is that to free motion, on "
        "the same bodies and in the same scenes, in percentage points; what was expected is what the verdicts said of "
        "reaching, on average, where they accepted."
    )
    rows = []
    for cell in others:
        told = f"{cell.settings['scenario']}, {cell.settings['task']}, seed {cell.settings['seed']}"
        free = next((_of_bodies(other, cell) for other in cells if played_freely(other, cell)), None)
        known = ["-", "-"] if free is None else [free.success("aligned").percent(), cell.less(free, "aligned").points()]
        seconds = mean(row["costs"]["aligned"]["robot_seconds"] for row in cell.rows)
        own = cell.success("aligned").percent(), *known, *_foretold(cell)
        rows.append([told, str(len(cell.rows)), motion_of(cell), f"{seconds:.0f} s", *own])
    success = label("aligned"), "with free motion", "difference", "accepted", "expected"
    yield markdown(("unseen", "bodies", "motion", "robot's own time of play", *success), rows)


def _foretold(cell: CellResult) -> list[str]:
    """How many bodies were accepted, and the success that was expected of them."""
    verdicts = [Verdict.from_dict(row["verdicts"]["aligned"]) for row in cell.rows]
    accepted = [verdict for verdict in verdicts if verdict.accepted]
    known = [verdict.expected for verdict in accepted if verdict.expected is not None]
    expected = [found.success for found in known if found.task == cell.settings["task"]]
    told = f"{100 * mean(expected):.0f} %" if expected else "-"
    return [f"{len(accepted)} of {len(verdicts)}", told]


def _of_bodies(cell: CellResult, other: CellResult) -> CellResult:
    """What a cell has of another one's bodies."""
    names = {row["name"] for row in other.rows}
    return replace(cell, rows=[row for row in cell.rows if row["name"] in names])
