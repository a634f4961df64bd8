"""What cells are called beside one another: what tells them apart goes into columns, what all share into words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from selfalign.acting import Acting
from selfalign.report.results import CellResult

ALWAYS = ("unseen", "task")
"""Columns that are there even where all cells are alike."""


@dataclass(frozen=True)
class Naming:
    """The columns that name some cells."""

    columns: tuple[str, ...]
    shared: str
    """What all of them have in common, beside that."""
    files: Mapping[Path, str] = field(default_factory=dict, compare=False)
    """What each file is called (`file_names`)."""

    @classmethod
    def of(cls, cells: Sequence[CellResult]) -> Self:
        """Those that tell these cells apart, as few as it takes; their file is one where nothing else does."""
        told = [traits(cell) for cell in cells]
        differing = [name for name in traits_of(told) if len({one[name] for one in told}) > 1]
        columns = [*ALWAYS, *(name for name in differing if name not in (*ALWAYS, "file"))]
        named = {tuple(one[name] for name in columns) for one in told}
        if len(named) < len(told):
            columns.append("file")
        alike = [name for name in traits_of(told) if name not in (*columns, *differing, "file") and told[0][name]]
        shared = [f"{name} {told[0][name]}" for name in alike]
        return cls(tuple(columns), ", ".join(shared), file_names(cells))

    def row(self, cell: CellResult) -> list[str]:
        """A cell's name, by column."""
        told = {**traits(cell), "file": self.files[cell.path]}
        return [told[name] for name in self.columns]


def file_names(cells: Sequence[CellResult]) -> dict[Path, str]:
    """What the files of some cells are called: with their folders where several have one name, as every `matrix.json`
    has."""
    paths = {cell.path for cell in cells}
    count = Counter(path.name for path in paths)
    return {path: path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths}


def traits(cell: CellResult) -> dict[str, str]:
    """All that a cell may be told by."""
    settings, acting = cell.settings, cell.settings.get("acting")
    return {
        "unseen": str(settings["scenario"]),
        "task": str(settings["task"]),
        "checkpoint": cell.label,
        "seed": str(settings["seed"]),
        "play": str(settings.get("motion", "free")),
        "acting": "as trained"
        if acting is None or Acting.from_dict(acting) == Acting()
        else str(Acting.from_dict(acting)),
        "file": cell.path.name,
    }


def traits_of(told: Sequence[dict[str, str]]) -> list[str]:
    """Their names."""
    return list(told[0]) if told else []
