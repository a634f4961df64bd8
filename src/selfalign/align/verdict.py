"""Accept or reject: did fitting the context explain play that it was not fitted to?

Where the checkpoint carries a calibration, the verdict also says what success to expect of a body that is explained so
well, and rejects a loss of which the checkpoint knows nothing."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfalign.calibration import Calibration, Expected


@dataclass(frozen=True)
class Verdict:
    """What `str()` says in one line: `accept: held-out play loss 0.41 -> 0.12 (null 0.40)`."""

    accepted: bool
    before: float
    """Held-out play loss of the start context."""
    after: float
    """Held-out play loss of the best context that was found."""
    null: float
    """Held-out play loss after a random update as large as the fitted one, on average."""
    reason: str = ""
    """Why it was rejected; empty for an accepted one."""
    note: str = ""
    """What else there is to know, such as an interruption."""
    doubt: str = ""
    """Why an accepted fit may act worse than expected; empty where nothing says so (`Calibration.doubt`)."""
    expected: Expected | None = None
    """Success to expect, by the checkpoint's calibration; None without one. Where the reason is that the loss is
    outside what it has seen, this is a guess."""

    def __str__(self) -> str:
        word = "accept" if self.accepted else "reject"
        numbers = f"held-out play loss {_short(self.before)} -> {_short(self.after)} (null {_short(self.null)})"
        expected = "" if self.expected is None or self.reason else str(self.expected)
        return "; ".join(part for part in (f"{word}: {numbers}", self.reason, expected, self.doubt, self.note) if part)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a number that is not finite becomes null."""
        return {name: None if value != value or value in _INFINITE else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_dict`."""
        numbers = {name: math.nan if data[name] is None else float(data[name]) for name in ("before", "after", "null")}
        expected = data.get("expected")  # verdicts from before there were calibrations have none
        return cls(
            bool(data["accepted"]),
            **numbers,
            reason=data["reason"],
            note=data["note"],
            doubt=data.get("doubt", ""),  # as with expectations
            expected=None if expected is None else Expected(**expected),
        )


def judge(
    before: float,
    after: float,
    null: float,
    *,
    min_improvement: float = 0.02,
    problem: str = "",
    note: str = "",
    calibration: Calibration | None = None,
    play_frames: int = 0,
) -> Verdict:
    """Accepts if the held-out loss fell by the share `min_improvement`, below the start's and below the null update's,
    and if the calibration has no objection.

    Args:
        before: held-out loss of the start context.
        after: held-out loss of the fitted context, on the same samples, noise and times.
        null: the same for a random update of equal norm: a loss that any change of W lowers says nothing of the body.
        min_improvement: share of `before`, and of `null`, by which `after` must be lower.
        problem: a reason to reject that was seen while fitting.
        note: kept as it is.
        calibration: of the checkpoint, for the same losses; None: judge by the losses alone.
        play_frames: how much play there is, to fit and to judge; what is little play is not doubted.
    """
    reason = problem
    if not reason and not all(map(math.isfinite, (before, after, null))):
        reason = "a loss is not finite"
    elif not reason and not after < before * (1 - min_improvement):
        reason = f"not {min_improvement:.0%} below the start"
    elif not reason and not after < null * (1 - min_improvement):
        reason = f"not {min_improvement:.0%} below a random update of equal norm"
    expected, doubt = None, ""
    if calibration is not None and math.isfinite(after):
        reason = reason or calibration.objection(after)
        expected = calibration.expect(after)
        doubt = "" if reason else calibration.doubt(after, play_frames)
    return Verdict(not reason, before, after, null, reason, note, doubt, expected)


_INFINITE = (math.inf, -math.inf)


def _short(value: float) -> str:
    return f"{value:.2f}" if not math.isfinite(value) or abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
