"""Intervals for what a benchmark measures. Pure functions of numbers; nothing here knows of robots.

Two questions need two intervals. How well does one body do? Its episodes are independent trials: Wilson. How well do
bodies of this kind do? Episodes of one body share its camera and its context, so bodies are the independent draws, and
pooling episodes would make the interval too narrow: bootstrap over bodies, whose percentiles are expanded, since those
of a dozen units are too narrow (a 95 % interval covers in 89 % of cases).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float | None
    """None, as `high`, where one unit says nothing about the spread between units."""
    high: float | None
    """None too where there is no bound: a ratio whose denominator may be 0."""

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Interval":
        return cls(data["value"], data["low"], data["high"])

    def percent(self) -> str:
        """For a table: `93 % [88, 96]`."""
        ends = "" if self.low is None or self.high is None else f" [{100 * self.low:.0f}, {100 * self.high:.0f}]"
        return f"{100 * self.value:.0f} %{ends}"

    def short(self) -> str:
        """A number as it is: `0.81 [0.69, 0.93]`."""
        ends = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{ends}"

    def points(self) -> str:
        """A difference of shares in percentage points, for a table: `+12 [+3, +20]`."""
        ends = "" if self.low is None or self.high is None else f" [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"
        return f"{100 * self.value:+.0f}{ends}"


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); holds for few trials and near 0 and 1.

        (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Args:
        successes: 0 to `trials`.
        trials: independent attempts, at least 1.
        z: standard normal quantile; the default gives 95 %.

    Raises:
        ValueError: no trials, or successes that are not among them.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a proportion needs 0 <= successes <= trials and a trial, got {successes} of {trials}")
    p, z2 = successes / trials, z * z
    centre = p + z2 / (2 * trials)
    spread = z * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    # Where p is 0 or 1 the exact end is p itself; rounding must not put it beyond.
    low = 0.0 if successes == 0 else float((centre - spread) / scale)
    high = 1.0 if successes == trials else float((centre + spread) / scale)
    return Interval(p, low, high)


def bootstrap_mean(
    values: Sequence[float] | Float[np.ndarray, " n"], *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean over independent units (bodies) with the expanded percentile interval of the bootstrap (`expanded`).

    With one unit nothing is known about the spread between units, and the ends are None.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"bootstrap needs a list of finite numbers, got {values!r}")
    if len(data) == 1:
        return Interval(float(data[0]), None, None)
    picks = np.random.default_rng(seed).integers(len(data), size=(draws, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), expanded(level, len(data)))
    return Interval(float(data.mean()), float(low), float(high))


def expanded(level: float, units: int) -> tuple[float, float]:
    """Percentiles of a bootstrap whose interval is as wide as Student's (Hesterberg, arXiv 1411.5279, section 5.2):

        Phi(-+ sqrt(n / (n - 1)) t_{n - 1})

    A bootstrap's spread is that of the units with n in the denominator, and its percentiles are those of a normal
    distribution, however few the units are.
    """
    from scipy.special import ndtr, stdtrit

    half = math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 + level) / 2)
    return float(ndtr(-half)), float(ndtr(half))


def mean_success(results: Sequence[Mapping[str, Any]]) -> Interval:
    """Success over bodies: the mean, with the bootstrap's interval over bodies, and at least Wilson's of all episodes:
    where no body ever succeeds, bodies do not differ, and may still succeed now and then.

    Args:
        results: of each body, as `RolloutResult.to_dict` gives them: `value`, `successes` and `episodes`.

    Raises:
        ValueError: no results.
    """
    found = bootstrap_mean([result["value"] for result in results])
    if found.low is None or found.high is None:
        return found
    pooled = wilson(*(sum(result[name] for result in results) for name in ("successes", "episodes")))
    assert pooled.low is not None and pooled.high is not None  # Wilson's always has them
    return Interval(found.value, min(found.low, pooled.low), max(found.high, pooled.high))


def bootstrap_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Ratio of two means of independent groups of units, each group drawn anew (for instance after / oracle).

    With one unit in a group nothing is known about the spread, and the ends are None.

    Raises:
        ValueError: an empty group, a number that is not finite, or a denominator with mean 0.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    for group in (top, bottom):
        if group.ndim != 1 or len(group) == 0 or not np.isfinite(group).all():
            raise ValueError(f"bootstrap needs lists of finite numbers, got {numerator!r} and {denominator!r}")
    if bottom.mean() == 0:
        raise ValueError("the denominator's mean is 0, so there is no ratio")
    rng = np.random.default_rng(seed)
    tops = top[rng.integers(len(top), size=(draws, len(top)))].mean(axis=1)
    bottoms = bottom[rng.integers(len(bottom), size=(draws, len(bottom)))].mean(axis=1)
    ratios = np.divide(tops, bottoms, out=np.full(draws, np.inf), where=bottoms > 0)
    value, fewest = float(top.mean() / bottom.mean()), min(len(top), len(bottom))
    if fewest == 1:
        return Interval(value, None, None)
    low, high = np.quantile(ratios, expanded(level, fewest), method="nearest")
    return Interval(value, float(low), float(high) if np.isfinite(high) else None)


def over_bodies(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success over bodies, as JSON values: `mean_success`, the worst body, and all pooled.

    Args:
        results: as for `mean_success`.
    """
    values = [result["value"] for result in results]
    successes, episodes = (sum(result[name] for result in results) for name in ("successes", "episodes"))
    # As if all episodes were independent: narrower than it should be, for comparison with other benchmarks.
    pooled = {"successes": successes, "episodes": episodes, **wilson(successes, episodes).to_dict()}
    return {**mean_success(results).to_dict(), "bodies": len(values), "worst_body": min(values), "pooled": pooled}


@dataclass(frozen=True)
class Reached:
    """How much of something it takes to get to a share of a ceiling."""

    value: int | None
    """The least amount measured whose mean gets there; None where none does."""
    low: int | None
    high: int | None
    """Ends of the interval; None where it is open, or where one body says nothing."""
    share: float
    """Of the bootstrap's draws in which some amount gets there."""

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


def amount_to_reach(
    curve: Mapping[int, Sequence[float]],
    ceiling: Sequence[float],
    *,
    share: float = 0.9,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> Reached:
    """The least amount whose mean success is at least `share` of the ceiling's, with a bootstrap over bodies; none gets
    to a share of nothing.

    Args:
        curve: success of the same bodies, in the same order, at each amount.
        ceiling: success of other bodies, drawn independently.

    Raises:
        ValueError: nothing was measured, or not of the same bodies at every amount.
    """
    amounts = sorted(curve)
    if not amounts or not len(ceiling) or len({len(curve[amount]) for amount in amounts}) != 1:
        raise ValueError(f"a curve needs the same bodies at every amount, and a ceiling; got {curve!r}, {ceiling!r}")
    table, top = (
        np.array([curve[amount] for amount in amounts], dtype=np.float64),
        np.asarray(ceiling, dtype=np.float64),
    )
    rng, bodies = np.random.default_rng(seed), table.shape[1]
    means = table[:, rng.integers(bodies, size=(draws, bodies))].mean(axis=2)
    tops = top[rng.integers(len(top), size=(draws, len(top)))].mean(axis=1)
    reached = _first((means >= share * tops) & (tops > 0))
    ends = np.quantile(reached, expanded(level, bodies) if bodies > 1 else (0.0, 1.0), method="nearest")
    (value,) = _first(((table.mean(axis=1) >= share * top.mean()) & (top.mean() > 0))[:, None])
    named = [*amounts, None]
    low, high = (named[int(end)] if bodies > 1 else None for end in ends)
    return Reached(named[int(value)], low, high, float((reached < len(amounts)).mean()))


def _first(reached: np.ndarray) -> np.ndarray:
    """Row of the first True in each column; the number of rows where there is none."""
    return np.where(reached.any(axis=0), reached.argmax(axis=0), len(reached))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho; None for fewer than three pairs or where one side does not vary.

    Raises:
        ValueError: lists of different length.
    """
    if len(a) != len(b):
        raise ValueError(f"a rank correlation needs pairs, got {len(a)} and {len(b)} numbers")
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
