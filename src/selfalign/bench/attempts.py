"""Attempts: a context of a body, how well it explains the body's play, and how the body acted under it.

The rows of `bench calibrate`, `bench adapt` and `bench matrix` hold them; here they all become one kind of value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfalign.align.verdict import Verdict, judge
from selfalign.bench.subject import ALIGNED, BEFORE, RANDOM, after
from selfalign.calibration import Calibration

SHORT, LATE, AXES = "short", "late", "axes"
"""Contexts fitted to two trajectories only, to play whose actions were recorded late, and to play as a real robot's is
recorded (`sim.playing.play_by_axes`)."""

SHORT_PLAY = 2
"""Trajectories of `short` play."""
AT = "@"
"""Between a method and the amount of play or of demonstrations that it was given, in the name of a condition."""

RETURNED_PRIOR = "returned_prior"
"""In a row of a matrix: the conditions of which the prior came back."""


@dataclass(frozen=True)
class Attempt:
    """One context of one body."""

    cell: str
    """What was measured together: a scenario, or a cell of a matrix."""
    body: str
    """The body's name; attempts of one body are not independent."""
    kind: str
    """How the context came about: `before` (the prior), `after_3`, `aligned`, `random`, `swap`, `short`, `late`,
    `axes`."""
    verdict: Verdict
    successes: int
    episodes: int
    before: float
    """Success of the same body in the same scenes under the prior."""
    action_loss: float | None = None

    @property
    def loss(self) -> float:
        """Held-out play loss under the context."""
        return self.verdict.after

    @property
    def success(self) -> float:
        return self.successes / self.episodes

    @property
    def gain(self) -> float:
        """Success under the context minus success before, in the same scenes."""
        return self.success - self.before


def amount_of(kind: str, settings: Mapping[str, Any]) -> int:
    """Trajectories of play that a context was fitted to, by its kind and what was measured; 0 where they do not say."""
    if AT in kind:
        return int(kind.rpartition(AT)[2])
    if kind == SHORT:
        return SHORT_PLAY
    play = settings.get("play", 0)
    return play if isinstance(play, int) else max(play, default=0)


def read_attempts(
    row: Mapping[str, Any],
    cell: str,
    calibration: Calibration | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Attempt]:
    """The attempts of a body's row, those whose play loss is known; the prior is one where the row holds its verdict.

    Where `align` has rejected a fit, the body acted under the prior, not under what was fitted: that is no attempt.

    Args:
        row: of `bench calibrate`, `bench adapt` or `bench matrix`.
        cell: what it belongs to.
        calibration: judge anew by this one; None: as the row says.
        settings: of what was measured, which say how much play there was: little play is not doubted.
    """
    settings = {} if settings is None else settings
    success = row["success"]
    if BEFORE not in success:
        return
    for kind, verdict in _verdicts(row):
        if kind not in success or kind in row.get(RETURNED_PRIOR, ()):
            continue
        if calibration is not None:
            frames = amount_of(kind, settings) * settings.get("play_length", 0)
            verdict = _anew(verdict, calibration, frames)
        yield Attempt(
            cell,
            row["name"],
            kind,
            verdict,
            success[kind]["successes"],
            success[kind]["episodes"],
            success[BEFORE]["successes"] / success[BEFORE]["episodes"],
            (row.get("action_loss") or {}).get(kind),
        )


def _anew(verdict: Verdict, calibration: Calibration, play_frames: int) -> Verdict:
    """A verdict by the same losses and another calibration."""
    losses = verdict.before, verdict.after, verdict.null
    # What was seen while fitting, no losses tell. Where a calibration has judged, the reason may be its objection.
    problem = verdict.reason if verdict.expected is None and judge(*losses).accepted else ""
    return judge(*losses, problem=problem, note=verdict.note, calibration=calibration, play_frames=play_frames)


def _verdicts(row: Mapping[str, Any]) -> Iterator[tuple[str, Verdict]]:
    if "verdicts" in row:
        yield from ((kind, Verdict.from_dict(verdict)) for kind, verdict in row["verdicts"].items())
        return
    # A row of `bench adapt`: the verdict on what `align` returned, and the play loss after other numbers of steps.
    own = Verdict.from_dict(row["verdict"])
    if own.accepted:
        yield ALIGNED, own
    for step, loss in row["held_out_play_loss"].items():
        if int(step) and loss is not None:
            yield after(int(step)), judge(own.before, loss, own.null)
    yield RANDOM, judge(own.before, own.null, own.null)
