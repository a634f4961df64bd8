"""Result files of the benchmarks, read as cells: what was measured together under one setting."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfalign.bench.attempts import Attempt, read_attempts
from selfalign.bench.stats import Interval, bootstrap_mean
from selfalign.calibration import Calibration

STEPS = "after_"
READ = ("bench adapt", "bench matrix", "bench calibrate", "demo")


@dataclass(frozen=True, eq=False)
class Cell:
    """Bodies under one setting."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    """One for each held-out body."""
    sources: Sequence[Mapping[str, Any]]
    """Of seen bodies: the oracle."""
    settings: Mapping[str, Any]
    fingerprint: str
    path: Path
    provenance: Mapping[str, Any]

    @property
    def conditions(self) -> list[str]:
        """Contexts under which held-out bodies acted, in the order of the file."""
        return list(dict.fromkeys(name for row in self.rows for name in row["success"]))

    def success(self, condition: str) -> Interval:
        """Mean over bodies, with a bootstrap over bodies; `oracle` is of the seen ones."""
        rows = self.sources if condition == "oracle" else self.rows
        return bootstrap_mean([row["success"][condition]["value"] for row in rows if condition in row["success"]])

    def success_by_steps(self) -> dict[int, Interval]:
        """Success after numbers of alignment steps, 0 being the prior."""
        steps = {int(name.removeprefix(STEPS)): name for name in self.conditions if name.startswith(STEPS)}
        named = {0: "before", **steps} if steps and "before" in self.conditions else steps
        return {step: self.success(name) for step, name in sorted(named.items())}

    def loss_by_steps(self) -> dict[int, Interval]:
        """Held-out play loss after numbers of alignment steps at which every body was measured."""
        tables = [row.get("held_out_play_loss") or {} for row in self.rows]
        shared = [step for step in tables[0] if all(table.get(step) is not None for table in tables)] if tables else []
        return {
            int(step): bootstrap_mean([table[step] for table in tables], draws=1000) for step in sorted(shared, key=int)
        }

    def attempts(self, calibration: Calibration | None = None) -> list[Attempt]:
        """Contexts with their verdicts, judged anew by a calibration of the same model where one is given."""
        fitting = calibration if calibration is not None and calibration.fingerprint == self.fingerprint else None
        return [attempt for row in self.rows for attempt in read_attempts(row, self.name, fitting)]


def read_cells(paths: Sequence[Path]) -> list[Cell]:
    """The cells of result files, each with a name of its own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a result file of a benchmark that is read here.
    """
    cells: list[Cell] = []
    for path in paths:
        cells += _read(path)
    names = [cell.name for cell in cells]
    return [
        replace(cell, name=f"{cell.name} ({cell.path.stem})") if names.count(cell.name) > 1 else cell for cell in cells
    ]


def _read(path: Path) -> Iterator[Cell]:
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    whole = data if isinstance(data, dict) else {}
    parts = data if isinstance(data, list) else whole.get("cells", [whole])
    try:
        for part in parts:
            yield from _cells(path, {**{name: whole.get(name) for name in ("provenance", "fingerprint")}, **part})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of {', '.join(READ)}: {error!r}") from error


def _cells(path: Path, part: Mapping[str, Any]) -> Iterator[Cell]:
    """One cell, or one for each scenario where rows say which is theirs."""
    rows: list[Mapping[str, Any]] = part["bodies"]
    settings = part["settings"]
    for scenario in dict.fromkeys(row.get("scenario", settings.get("scenario")) for row in rows):
        own = [row for row in rows if row.get("scenario", settings.get("scenario")) == scenario]
        held_out = [row for row in own if row.get("role", "heldout") == "heldout"]
        told = [part.get("name") or f"{scenario}, {settings['task']}", f"seed {settings['seed']}"]
        yield Cell(
            ", ".join(told),
            held_out,
            [row for row in own if row.get("role") == "source"],
            {**settings, "scenario": scenario},
            part["fingerprint"] or "",
            path,
            part["provenance"] or {},
        )
