"""Fits a calibration to attempts: success as a falling function of held-out play loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfalign.bench.attempts import AXES, SHORT, Attempt
from selfalign.bench.stats import wilson
from selfalign.bench.subject import ALIGNED, BEFORE
from selfalign.calibration import Ample, Calibration, Expected

GROUP = 6
"""Attempts of a group, at least."""
GROUPS = 24
"""Groups, at most."""


def fit_calibration(
    attempts: Sequence[Attempt],
    *,
    fingerprint: str,
    task: str,
    source: Mapping[str, Any],
    play_frames: int,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Calibration:
    """Isotonic regression of success on play loss over groups of attempts with like losses.

    The interval of a group is the wider, at each end, of two: the percentile bootstrap over bodies, whose attempts hang
    together; and Wilson's over the episodes of all groups that regression has pooled with it, which keeps an
    interval where every body did the same. Isotonic, because "lower loss, no worse success" is all that is known: the
    curve need not reach 0 or 1, and nothing is assumed of its shape.

    Args:
        attempts: of several bodies, those of the prior (`before`) among them.
        fingerprint: of the model.
        task: at which success was measured.
        source: settings and provenance, for the record.
        play_frames: how much play aligned bodies had, but for those that had little.
        seed: of the bootstrap.

    Raises:
        ValueError: too few attempts, or none by proper alignment or under the prior.
    """
    finite = sorted((a for a in attempts if np.isfinite(a.loss)), key=lambda a: a.loss)
    ended = [a for a in finite if a.kind in (ALIGNED, SHORT, AXES)]
    seen = [a.loss for a in ended if a.gain > 0] or [a.loss for a in ended]  # a checkpoint may be of no use to any body
    ample = [a.loss for a in ended if a.gain > 0 and a.kind != SHORT]
    prior = [a for a in attempts if a.kind == BEFORE]
    bodies = sorted({a.body for a in finite})
    if len(finite) < 2 * GROUP or not seen or not prior or len(bodies) < 2:
        raise ValueError(
            f"a calibration needs {2 * GROUP} attempts of two bodies, some aligned and some before aligning; there are "
            f"{len(finite)} of {len(bodies)} bodies, {len(seen)} aligned and {len(prior)} before"
        )
    groups = np.array_split(np.arange(len(finite)), min(GROUPS, len(finite) // GROUP))
    table = _Table.of(finite, bodies, groups)
    fitted = table.curve(np.ones(len(bodies)))
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(len(bodies), np.full(len(bodies), 1 / len(bodies)), size=draws)
    curves = np.stack([table.curve(weights, fallback=fitted) for weights in picks])
    low, high = np.quantile(curves, [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = _at_least_wilson(low, high, table, fitted)
    before = wilson(sum(a.successes for a in prior), sum(a.episodes for a in prior))
    assert before.low is not None and before.high is not None
    return Calibration(
        fingerprint=fingerprint,
        task=task,
        loss=_rounded([float(np.mean([finite[i].loss for i in group])) for group in groups]),
        success=_rounded(fitted),
        low=_rounded(np.minimum(low, fitted)),
        high=_rounded(np.maximum(high, fitted)),
        action_loss=tuple(_mean([finite[i].action_loss for i in group]) for group in groups),
        seen=(round(min(seen), 5), round(max(seen), 5)),
        before=Expected(*_rounded([before.value, before.low, before.high]), task=task),
        bodies=len(bodies),
        attempts=len(finite),
        episodes=sum(a.episodes for a in finite),
        source=source,
        ample=Ample(play_frames, round(max(ample), 5)) if ample else None,
    )


class _Table:
    """Successes and episodes of each body in each group, `[bodies, groups]`."""

    def __init__(self, successes: np.ndarray, episodes: np.ndarray):
        self.successes, self.episodes = successes, episodes

    @classmethod
    def of(cls, attempts: Sequence[Attempt], bodies: Sequence[str], groups: Sequence[np.ndarray]) -> "_Table":
        table = cls(*np.zeros((2, len(bodies), len(groups))))
        for column, group in enumerate(groups):
            for attempt in (attempts[i] for i in group):
                row = bodies.index(attempt.body)
                table.successes[row, column] += attempt.successes
                table.episodes[row, column] += attempt.episodes
        return table

    def curve(self, weights: np.ndarray, fallback: np.ndarray | None = None) -> np.ndarray:
        """Success of each group, never rising, with bodies weighted; a group without bodies follows its neighbours,
        or at the ends what `fallback` has."""
        from scipy.optimize import isotonic_regression

        successes, episodes = weights @ self.successes, weights @ self.episodes
        there = episodes > 0
        fitted = isotonic_regression(successes[there] / episodes[there], weights=episodes[there], increasing=False).x
        if there.all():
            return fitted
        assert fallback is not None
        columns = np.arange(len(there))
        ends = {"left": max(fallback[0], fitted[0]), "right": min(fallback[-1], fitted[-1])}
        return np.interp(columns, columns[there], fitted, **ends)


def _at_least_wilson(
    low: np.ndarray, high: np.ndarray, table: _Table, fitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the curve that are no surer than the episodes of the groups that regression has pooled."""
    low, high = low.copy(), high.copy()
    for value in np.unique(fitted):
        pooled = fitted == value
        interval = wilson(int(table.successes[:, pooled].sum()), int(table.episodes[:, pooled].sum()))
        assert interval.low is not None and interval.high is not None
        low[pooled] = np.minimum(low[pooled], interval.low)
        high[pooled] = np.maximum(high[pooled], interval.high)
    # Wilson's ends of neighbouring pools may cross; the curve's ends fall as the curve does.
    return np.minimum.accumulate(low), np.maximum.accumulate(high[::-1])[::-1]


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 5) if known else None
