"""The files in benchmarks/results, told apart: what the page of results (`results_page.py`) is written from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from selfalign.acting import Acting
from selfalign.bench.attempts import Attempt
from selfalign.bench.plan import SAME_TEST
from selfalign.calibration import Calibration
from selfalign.checkpoint import CheckpointInfo
from selfalign.report.quality import judged
from selfalign.report.reading import MATRIX, read_cells
from selfalign.report.results import CellResult

ROOT = Path(__file__).parents[1]
ABLATION = "ablation_"
"""How the names of files begin that are of other trainings than the shipped one."""
ABLATIONS = "selfalign-ablation-1"
"""The format of `bench ablate`."""
CHECKS = "selfalign-bench-calibrate-1"
"""The format of `bench calibrate`: bodies act under contexts that were fitted badly on purpose, too."""
TUNING = "selfalign-tune-1"
"""The format of `bench tune`."""
SEEDS = "training-seeds"
"""The plan that measures the shipped recipe, trained again (`plans/training_seeds.json`)."""
RECIPES = "recipes-push"
"""The plan that measures recipes of the shipped checkpoint's scale in pushing (`plans/recipes_push.json`)."""
PRACTICE = "more-pushing"
"""The plan that measures the shipped checkpoint beside one that was shown more pushing (`plans/more_pushing.json`)."""
APART = ("acting", RECIPES, PRACTICE)
"""Plans of validation bodies, by which something was chosen or compared."""
FREE = "free"
"""The motion of play where nothing else is said."""
CHECKPOINT = ROOT / "checkpoints/tiny"
"""The shipped one."""
CALIBRATION = CHECKPOINT / "calibration.json"


@dataclass(frozen=True)
class Results:
    """A folder of result files."""

    data: dict[Path, Any]
    """What each file holds."""
    shipped: list[CellResult]
    """Of the shipped checkpoint."""
    ablated: list[CellResult]
    """Of other trainings, each a `bench adapt` of its own."""
    checked: list[CellResult]
    """Of `bench calibrate`."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        data = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
        apart = [path for path, told in data.items() if repeats(told) or any(is_matrix(told, plan) for plan in APART)]
        shipped, ablated = read_both([path for path in data if is_bench(data[path]) and path not in apart])
        return cls(data, shipped, ablated, read_cells([path for path in data if format_of(data[path]) == CHECKS]))

    def of_format(self, name: str) -> dict[Path, Any]:
        """The files of a format, by their paths."""
        return {path: data for path, data in self.data.items() if format_of(data) == name}

    def check_shipped(self) -> None:
        """Raises `ValueError` where files that are told as the shipped checkpoint's are of another model."""
        own = shipped_calibration().fingerprint
        wrong = sorted({cell.path.name for cell in (*self.shipped, *self.checked) if cell.fingerprint != own})
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: not of the shipped checkpoint ({own}); measure again, or call files of other "
                f"trainings {ABLATION}..."
            )

    @property
    def recipes(self) -> dict[Path, Any]:
        """Ablations: recipes that differ."""
        return {path: data for path, data in self.of_format(ABLATIONS).items() if not repeats(data)}

    @property
    def repeated(self) -> list[CellResult]:
        """The shipped recipe, trained again."""
        return read_cells([path for path, data in self.data.items() if repeats(data)])

    @property
    def pushed(self) -> list[CellResult]:
        """Recipes that differ, in pushing."""
        return self._of_plan(RECIPES)

    @property
    def practised(self) -> list[CellResult]:
        """The shipped checkpoint, and one that was shown more pushing."""
        return self._of_plan(PRACTICE)

    def _of_plan(self, plan: str) -> list[CellResult]:
        return read_cells([path for path, data in self.data.items() if is_matrix(data, plan)])

    @property
    def acting(self) -> list[Any]:
        """Matrices of speeds and temperatures, which are of validation bodies."""
        return [data for data in self.data.values() if is_acting(data)]

    @property
    def attempts(self) -> list[Attempt]:
        """On bodies that the shipped calibration was not fitted to, judged by it where they are its model's."""
        return judged([*self.shipped, *self.ablated, *self.checked], shipped_calibration())


def read_both(paths: Sequence[Path]) -> tuple[list[CellResult], list[CellResult]]:
    """Cells of the shipped checkpoint, and of other trainings by the names of their files."""
    others = [path for path in paths if path.stem.startswith(ABLATION)]
    named = [replace(cell, name=cell.path.stem.replace("_", " ")) for cell in read_cells(others)]
    return without_repeats(read_cells([path for path in paths if path not in others])), named


def without_repeats(cells: Sequence[CellResult]) -> list[CellResult]:
    """What two benchmarks measured, once: cells whose bodies another cell has under as many conditions are left out."""
    kept: list[CellResult] = []
    for cell in sorted(cells, key=lambda cell: -len(cell.conditions)):
        if not any(_identity(other) == _identity(cell) and {*cell.conditions} <= {*other.conditions} for other in kept):
            kept.append(cell)
    return [cell for cell in cells if cell in kept]


def _identity(cell: CellResult) -> tuple[Any, ...]:
    bodies = tuple(sorted(row["name"] for row in cell.rows))
    told = [cell.settings.get(name) for name in (*SAME_TEST, "acting")]
    return cell.fingerprint, *map(str, told), motion_of(cell), play_of(cell), bodies


def motion_of(cell: CellResult) -> str:
    """How its bodies play."""
    return cell.settings.get("motion", FREE)


def play_of(cell: CellResult) -> int:
    """The most trajectories that bodies were given."""
    play = cell.settings["play"]
    return max(play, default=0) if isinstance(play, list) else play


def played_freely(cell: CellResult, other: CellResult) -> bool:
    """Whether a cell has the bodies and scenes of another one, aligned after as much free play."""
    alike = same_test(cell, other)
    bodies = {row["name"] for row in other.rows} <= {row["name"] for row in cell.rows}
    own = alike and bodies and cell.fingerprint == other.fingerprint and play_of(cell) == play_of(other)
    return own and motion_of(cell) == FREE and "aligned" in cell.conditions


def same_test(cell: CellResult, other: CellResult) -> bool:
    """Whether two cells were measured alike, and bodies acted alike."""
    return all(cell.settings.get(name) == other.settings.get(name) for name in (*SAME_TEST, "acting"))


def beside_aligned(cell: CellResult, cells: Sequence[CellResult]) -> CellResult:
    """A cell of other methods with what another one of the same bodies and scenes has of aligning, and its oracle."""
    if "aligned" in cell.conditions:
        return cell
    other = next((other for other in cells if played_freely(other, cell)), None)
    if other is None:
        return cell
    theirs = {row["name"]: row["success"] for row in other.rows}
    rows = [{**row, "success": {**theirs[row["name"]], **row["success"]}} for row in cell.rows]
    return replace(cell, rows=rows, sources=other.sources)


def shipped_calibration() -> Calibration:
    """Of the shipped checkpoint."""
    return Calibration.from_dict(json.loads(CALIBRATION.read_text(encoding="utf-8")))


def shipped_acting() -> Acting:
    """Of the shipped checkpoint."""
    return CheckpointInfo.read(CHECKPOINT).acting


def acting_of(cell: CellResult) -> Acting:
    """How bodies acted in it; where nothing is said, as the policy was trained."""
    return Acting.from_dict(cell.settings.get("acting", Acting().to_dict()))


def repeats(data: Any) -> bool:
    """Whether it is of trainings of the shipped recipe alone, at its own scale: a matrix of them, or an ablation."""
    if format_of(data) != ABLATIONS:
        return is_matrix(data, SEEDS)
    names = {training["label"].split("/")[0] for training in data["trainings"]}
    return names == {"all"} and data["scale"]["name"] == "shipped" and "matrix" in data


def is_bench(data: Any) -> bool:
    """Whether these are cells of a benchmark of adaptation."""
    told = format_of(data)
    return told == MATRIX or (told.startswith("selfalign-bench-") and told != CHECKS and "bodies" in data)


def is_acting(data: Any) -> bool:
    """Whether it is a matrix of speeds and temperatures, to choose by."""
    return is_matrix(data, "acting")


def is_matrix(data: Any, plan: str) -> bool:
    """Whether it is the matrix of a plan."""
    return format_of(data) == MATRIX and data["plan"] == plan


def format_of(data: Any) -> str:
    return str(data.get("format", "")) if isinstance(data, dict) else ""
