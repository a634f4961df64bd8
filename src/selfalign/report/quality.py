"""How good verdicts are: accept and reject against what aligning really gained, and expected against measured success.

An attempt *gained* if the body succeeded more often under the context than under the prior, in the same scenes:
success after - success before > 0. An accepted attempt without gain is a false accept.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from selfalign.bench.attempts import AT, Attempt, amount_of
from selfalign.bench.stats import Interval, bootstrap_mean, expanded
from selfalign.bench.subject import BEFORE, RANDOM
from selfalign.calibration import Calibration
from selfalign.report.reading import NAMES
from selfalign.report.results import CellResult

Score = Callable[[Attempt], float]


def judged(cells: Sequence[CellResult], calibration: Calibration | None = None) -> list[Attempt]:
    """The attempts of some cells, each once, however many have it.

    Args:
        calibration: judges those of its model anew; bodies that it was fitted to are left out. None: as the cells say.
    """
    found: dict[Hashable, Attempt] = {}
    for cell in cells:
        if calibration is not None and _fitted_to(calibration, cell):
            continue
        for attempt in cell.attempts(calibration):
            found.setdefault(_which(cell, attempt), attempt)
    return list(found.values())


SAME_ATTEMPT = ("task", "seed", "acting", "play_length", "execute", "num_steps")


def _which(cell: CellResult, attempt: Attempt) -> Hashable:
    """What is the same of an attempt in whatever file it is, and of no two: how the context came about, from how much
    play, and how the body was tried."""
    settings, (method, _, amount) = cell.settings, attempt.kind.partition(AT)
    kind = NAMES.get(method, method) if amount else attempt.kind
    told = [amount_of(attempt.kind, settings), settings.get("motion", "free"), settings.get("settings") or {}]
    told += [settings.get(name) for name in SAME_ATTEMPT]
    return cell.fingerprint, attempt.body, kind, str(told)


def _fitted_to(calibration: Calibration, cell: CellResult) -> bool:
    own = calibration.source.get("settings", {}).get("seed")
    return cell.fingerprint == calibration.fingerprint and cell.settings.get("seed") == own


def gained(attempt: Attempt) -> bool:
    """Whether the body acts better than before aligning."""
    return attempt.gain > 0


def loss_drop(attempt: Attempt) -> float:
    """Share of the play loss that the fit took away; 0 where there was none, as without alignment losses."""
    return 0.0 if attempt.verdict.before == 0 else 1 - attempt.verdict.after / attempt.verdict.before


def expected_success(attempt: Attempt) -> float:
    """By the calibration; not a number without one."""
    return np.nan if attempt.verdict.expected is None else attempt.verdict.expected.success


@dataclass(frozen=True)
class Confusion:
    """Attempts by verdict and gain."""

    true_accepts: tuple[Attempt, ...]
    false_accepts: tuple[Attempt, ...]
    """Accepted without gain."""
    false_rejects: tuple[Attempt, ...]
    """Rejected although they gained."""
    true_rejects: tuple[Attempt, ...]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Of the four, in this order."""
        return len(self.true_accepts), len(self.false_accepts), len(self.false_rejects), len(self.true_rejects)

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """(share of attempts without gain that were accepted, share of those with gain); None where one kind lacks."""
        bad = len(self.false_accepts) + len(self.true_rejects)
        good = len(self.true_accepts) + len(self.false_rejects)
        return (len(self.false_accepts) / bad, len(self.true_accepts) / good) if good and bad else None


def confusion(attempts: Sequence[Attempt]) -> Confusion:
    """Sorts attempts; the prior itself is none."""

    def those(accepted: bool, gain: bool) -> tuple[Attempt, ...]:
        return tuple(a for a in attempts if a.kind != BEFORE and a.verdict.accepted == accepted and gained(a) == gain)

    return Confusion(those(True, True), those(True, False), those(False, True), those(False, False))


def by_kind(attempts: Sequence[Attempt]) -> dict[str, Confusion]:
    """The same for attempts of each kind."""
    kinds = dict.fromkeys(a.kind for a in attempts if a.kind != BEFORE)
    return {kind: confusion([a for a in attempts if a.kind == kind]) for kind in kinds}


def fitted(attempts: Sequence[Attempt]) -> list[Attempt]:
    """All but random updates: a verdict's null is such an update, so that rejecting those is no achievement."""
    return [a for a in attempts if a.kind != RANDOM]


@dataclass(frozen=True)
class Roc:
    """What any threshold on a score would accept."""

    false_accept_rate: tuple[float, ...]
    """Of attempts without gain, rising from 0 to 1."""
    accept_rate: tuple[float, ...]
    """Of attempts with gain."""
    area: Interval
    """Probability that an attempt with gain has a higher score than one without (ties count half), with a bootstrap
    over bodies."""


def roc(attempts: Sequence[Attempt], score: Score, *, seed: int = 0, draws: int = 2000) -> Roc | None:
    """The curve of a score; None where all attempts gained, or none did."""
    attempts = [a for a in attempts if a.kind != BEFORE and np.isfinite(score(a))]
    scores = np.array([score(a) for a in attempts])
    good = np.array([gained(a) for a in attempts], dtype=bool)
    if not len(good) or good.all() or not good.any():
        return None
    levels = np.unique(scores)[::-1]
    rates = [[0.0, *(float((scores[side] >= level).mean()) for level in levels)] for side in (~good, good)]
    bodies = [a.body for a in attempts]
    groups = [np.flatnonzero([b == body for b in bodies]) for body in dict.fromkeys(bodies)]
    rng, areas = np.random.default_rng(seed), []
    for _ in range(draws if len(groups) > 1 else 0):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if 0 < good[rows].sum() < len(rows):
            areas.append(area(scores[rows], good[rows]))
    low, high = map(float, np.quantile(areas, expanded(0.95, len(groups)))) if areas else (None, None)
    return Roc(tuple(rates[0]), tuple(rates[1]), Interval(area(scores, good), low, high))


def area(scores: np.ndarray, good: np.ndarray) -> float:
    """Area under the ROC curve: Mann and Whitney's U over the number of pairs."""
    right, wrong = scores[good][:, None], scores[~good][None]
    return float((right > wrong).mean() + 0.5 * (right == wrong).mean())


@dataclass(frozen=True)
class Reliability:
    """Attempts with like expectations."""

    expected: float
    """Mean over bodies, each of which counts once, as in `measured`."""
    measured: Interval
    """Mean success with a bootstrap over bodies."""
    attempts: int


def reliability(attempts: Sequence[Attempt], groups: int = 8) -> list[Reliability]:
    """Expected against measured success, in groups of like expectations; empty without a calibration."""
    known = sorted((a for a in attempts if a.kind != BEFORE and a.verdict.expected is not None), key=expected_success)
    parts = np.array_split(np.arange(len(known)), min(groups, max(1, len(known) // 6))) if known else []
    result = []
    for part in parts:
        chosen = [known[i] for i in part]
        bodies: dict[str, list[tuple[float, float]]] = {}
        for attempt in chosen:
            bodies.setdefault(attempt.body, []).append((expected_success(attempt), attempt.success))
        expected, measured = np.array([np.mean(values, axis=0) for values in bodies.values()]).T
        result.append(Reliability(float(expected.mean()), bootstrap_mean(measured, draws=2000), len(chosen)))
    return result
