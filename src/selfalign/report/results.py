"""Cells: what a benchmark measured together under one setting, whichever benchmark it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfalign.bench.attempts import AT, Attempt, read_attempts
from selfalign.bench.stats import Interval, bootstrap_mean, bootstrap_ratio, mean_success
from selfalign.calibration import Calibration

ORACLE, SEEN_BEFORE = "oracle", "seen_before"
"""Of bodies of the kinds that the checkpoint was trained on: aligned, and under the prior."""
STEPS = "after_"


@dataclass(frozen=True, eq=False)
class CellResult:
    """Bodies under one setting."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    """One for each held-out body."""
    sources: Sequence[Mapping[str, Any]]
    """One for each seen body."""
    settings: Mapping[str, Any]
    fingerprint: str
    path: Path
    provenance: Mapping[str, Any]
    speeds: Sequence[Mapping[str, Any]] = ()
    """How much play methods needed for a share of the oracle, as `bench matrix` writes it."""
    label: str = ""
    """What a matrix calls its checkpoint."""

    @property
    def conditions(self) -> list[str]:
        """Contexts under which held-out bodies acted, in the order of the file."""
        return list(dict.fromkeys(name for row in self.rows for name in row["success"]))

    @property
    def seen(self) -> list[str]:
        """Contexts under which seen bodies acted: `oracle`, `seen_before`."""
        return [name for name in (ORACLE, SEEN_BEFORE) if any(name in row["success"] for row in self.sources)]

    def success(self, condition: str) -> Interval:
        """Mean over bodies, as `mean_success`; `oracle` and `seen_before` are of the seen ones."""
        rows = self.sources if condition in (ORACLE, SEEN_BEFORE) else self.rows
        return mean_success([row["success"][condition] for row in rows if condition in row["success"]])

    def gain(self, condition: str, over: str) -> Interval:
        """Mean over bodies of one condition's success less another's on the same body and scenes, with a bootstrap
        over bodies."""
        both = [row["success"] for row in self.rows if condition in row["success"] and over in row["success"]]
        return bootstrap_mean([success[condition]["value"] - success[over]["value"] for success in both])

    def less(self, other: "CellResult", condition: str) -> Interval:
        """As `gain`, of this cell's success less another's under one condition, over the bodies that both met.

        Raises:
            ValueError: there is none.
        """
        theirs = {row["name"]: row["success"][condition] for row in other.rows if condition in row["success"]}
        both = [row for row in self.rows if condition in row["success"] and row["name"] in theirs]
        return bootstrap_mean([row["success"][condition]["value"] - theirs[row["name"]]["value"] for row in both])

    def of_oracle(self, condition: str) -> Interval:
        """The mean success under a condition over that of the oracle, with a bootstrap over the bodies of both."""
        rows, sources = ([row["success"] for row in of] for of in (self.rows, self.sources))
        return bootstrap_ratio(
            [success[condition]["value"] for success in rows if condition in success],
            [success[ORACLE]["value"] for success in sources if ORACLE in success],
        )

    def success_by_steps(self) -> dict[int, Interval]:
        """Success after numbers of alignment steps, 0 being the prior."""
        steps = {int(name.removeprefix(STEPS)): name for name in self.conditions if name.startswith(STEPS)}
        named = {0: "before", **steps} if steps and "before" in self.conditions else steps
        return {step: self.success(name) for step, name in sorted(named.items())}

    def success_by_amount(self) -> dict[str, dict[int, Interval]]:
        """Success of each method after amounts of play or demonstrations; methods that were tried with one are left
        out."""
        curves: dict[str, dict[int, Interval]] = {}
        for name in self.conditions:
            if AT in name:
                method, amount = name.rsplit(AT, 1)
                curves.setdefault(method, {})[int(amount)] = self.success(name)
        return {method: dict(sorted(curve.items())) for method, curve in curves.items()}

    def loss_by_steps(self) -> dict[int, Interval]:
        """Held-out play loss after numbers of alignment steps at which every body was measured."""
        tables = [row.get("held_out_play_loss") or {} for row in self.rows]
        shared = [step for step in tables[0] if all(table.get(step) is not None for table in tables)] if tables else []
        return {
            int(step): bootstrap_mean([table[step] for table in tables], draws=1000) for step in sorted(shared, key=int)
        }

    def attempts(self, calibration: Calibration | None = None) -> list[Attempt]:
        """Contexts with their verdicts, judged anew by a calibration of the same model where one is given. What success
        to expect is left out where it is of another task than theirs, or does not say of which, and where bodies acted
        with another speed or temperature than those of the calibration."""
        fitting = calibration if calibration is not None and calibration.fingerprint == self.fingerprint else None
        found = [attempt for row in self.rows for attempt in read_attempts(row, self.name, fitting, self.settings)]
        alike = fitting is None or fitting.source.get("acting") == self.settings.get("acting")
        return [attempt if alike and self._expects(attempt) else _without_expectation(attempt) for attempt in found]

    def _expects(self, attempt: Attempt) -> bool:
        expected = attempt.verdict.expected
        return expected is not None and expected.task == self.settings["task"]


def _without_expectation(attempt: Attempt) -> Attempt:
    return replace(attempt, verdict=replace(attempt.verdict, expected=None))
