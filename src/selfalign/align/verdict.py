"""Accept or reject: did fitting the context explain play that it was not fitted to?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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

    def __str__(self) -> str:
        word = "accept" if self.accepted else "reject"
        numbers = f"held-out play loss {_short(self.before)} -> {_short(self.after)} (null {_short(self.null)})"
        return "; ".join(part for part in (f"{word}: {numbers}", self.reason, self.note) if part)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a number that is not finite becomes null."""
        return {name: None if value != value or value in _INFINITE else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_dict`."""
        numbers = {name: math.nan if data[name] is None else float(data[name]) for name in ("before", "after", "null")}
        return cls(bool(data["accepted"]), **numbers, reason=data["reason"], note=data["note"])


def judge(
    before: float, after: float, null: float, *, min_improvement: float = 0.02, problem: str = "", note: str = ""
) -> Verdict:
    """Accepts if the held-out loss fell by the share `min_improvement`, below the start's and below the null update's.

    Args:
        before: held-out loss of the start context.
        after: held-out loss of the fitted context, on the same samples, noise and times.
        null: the same for a random update of equal norm: a loss that any change of W lowers says nothing of the body.
        min_improvement: share of `before`, and of `null`, by which `after` must be lower.
        problem: a reason to reject that was seen while fitting.
        note: kept as it is.
    """
    reason = problem
    if not reason and not all(map(math.isfinite, (before, after, null))):
        reason = "a loss is not finite"
    elif not reason and not after < before * (1 - min_improvement):
        reason = f"not {min_improvement:.0%} below the start"
    elif not reason and not after < null * (1 - min_improvement):
        reason = f"not {min_improvement:.0%} below a random update of equal norm"
    return Verdict(not reason, before, after, null, reason, note)


_INFINITE = (math.inf, -math.inf)


def _short(value: float) -> str:
    return f"{value:.2f}" if not math.isfinite(value) or abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
