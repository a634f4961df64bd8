"""What a play loss is worth: how bodies with such a loss acted.

Measured on validation bodies by `selfalign bench calibrate`.

Low play loss alone proves nothing: a model whose action loss shaped its contexts reaches it and fails. A calibration
therefore belongs to one checkpoint. It holds a falling curve from held-out play loss to success, and the losses at
which alignment ended on bodies that the checkpoint was tried on; of a loss beyond them it knows nothing, and says so.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

FORMAT = "selfalign-calibration-1"
MARGIN = 0.1
"""Share by which a loss may lie beyond those that were seen. Of N + 1 bodies that are alike, the last one lies beyond
the others with probability 2 / (N + 1): some room is fair."""


@dataclass(frozen=True)
class Expected:
    """Success at one task to expect of a body, as a mean over bodies with such a play loss."""

    success: float
    low: float
    """95 % interval of that mean. Single bodies scatter more."""
    high: float
    task: str = ""
    """At which success was measured: of others it says little."""

    def __str__(self) -> str:
        return f"expected success {self.low:.2f}-{self.high:.2f}" + (f" ({self.task})" if self.task else "")


@dataclass(frozen=True)
class Ample:
    """Much play, and how far it is explained, at the least, on bodies of the kinds that a checkpoint knows.

    Play loss is high after little play, too. After much of it, it says that something is unlike all those bodies: a
    camera far from the sources', another kind of control, or actions that were recorded late.
    """

    frames: int
    """How much play it was."""
    loss: float
    """Greatest held-out play loss at which alignment to it ended, on bodies that then acted better."""


@dataclass(frozen=True)
class Calibration:
    """A curve through groups of attempts, from the lowest play loss to the highest; between them it is straight."""

    fingerprint: str
    """Of the checkpoint's model."""
    task: str
    """At which success was measured."""
    loss: tuple[float, ...]
    """Mean held-out play loss of each group, rising."""
    success: tuple[float, ...]
    """Success of each group, made monotone (isotonic regression): never rising."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    action_loss: tuple[float | None, ...]
    """Mean action loss of each group on demonstrations, where it was measured."""
    seen: tuple[float, float]
    """Least and greatest held-out play loss at which alignment ended on validation bodies, with much play, with little
    and with play as a real robot's is recorded, that then acted better than before."""
    before: Expected
    """Success of the same bodies before aligning."""
    bodies: int
    attempts: int
    episodes: int
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: settings, command, commit."""
    ample: Ample | None = None
    """Of the same bodies; None in calibrations from before it was measured."""

    def __post_init__(self) -> None:
        columns = (self.loss, self.success, self.low, self.high, self.action_loss)
        if not self.loss or len({len(column) for column in columns}) != 1:
            raise ValueError(f"a calibration needs columns of one length, got {[len(column) for column in columns]}")
        if not all(map(math.isfinite, (*self.loss, *self.seen))) or list(self.loss) != sorted(self.loss):
            raise ValueError(f"the play losses of a calibration must be finite and rising, got {self.loss}")
        if self.ample is not None and (self.ample.frames < 1 or not math.isfinite(self.ample.loss)):
            raise ValueError(f"ample play is at least a frame, and ended at a finite loss, got {self.ample}")
        triples = list(zip(self.low, self.success, self.high, strict=True))
        if not all(0 <= low <= value <= high <= 1 for low, value, high in triples):
            raise ValueError(f"success must lie within its interval, and that within 0 to 1, got {triples}")

    def covers(self, loss: float) -> bool:
        """Whether validation bodies that then acted better ended at such a play loss, give or take `MARGIN`."""
        least, greatest = self.seen
        return least * (1 - MARGIN) <= loss <= greatest * (1 + MARGIN)

    def expect(self, loss: float) -> Expected:
        """Success to expect at a play loss; beyond the curve's ends, that of its ends (see `covers`)."""
        success, low, high = (float(np.interp(loss, self.loss, y)) for y in (self.success, self.low, self.high))
        return Expected(success, low, high, self.task)

    def expect_action_loss(self, loss: float) -> float | None:
        """Action loss to expect at a play loss; None where none was measured."""
        known = [(x, y) for x, y in zip(self.loss, self.action_loss, strict=True) if y is not None]
        return float(np.interp(loss, [x for x, _ in known], [y for _, y in known])) if known else None

    def objection(self, loss: float) -> str:
        """Why a fit that ends at this play loss should be rejected; empty where nothing speaks against it."""
        if not self.covers(loss):
            least, greatest = self.seen
            return (
                f"play loss {loss:.3g} is outside what this checkpoint has seen, {least:.3g} to {greatest:.3g} on "
                f"{self.bodies} bodies"
            )
        expected = self.expect(loss)
        if expected.low <= self.before.success:
            return f"{expected} is no better than {self.before.success:.2f} before aligning"
        return ""

    def doubt(self, loss: float, frames: int) -> str:
        """Why the expectation may not hold for a fit to so much play that ends at this loss; empty where nothing says
        so. It is no objection: such bodies often act better all the same."""
        if self.ample is None or frames < self.ample.frames or loss <= self.ample.loss * (1 + MARGIN):
            return ""
        return (
            f"doubtful: with as much play none of {self.bodies} bodies that then acted better ended above "
            f"{self.ample.loss:.3g}; were actions recorded late, or is a camera or the control unlike all that this "
            "checkpoint was trained on?"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """The inverse of `to_dict`.

        Raises:
            ValueError: another format, or values that no calibration has.
        """
        names = {f.name for f in fields(cls)}
        if data.get("format") != FORMAT or {*data.keys(), "ample"} - {"format"} != names:
            raise ValueError(f"no calibration of format {FORMAT}: it has {sorted(data)}")
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
        ample = data.get("ample")
        values |= {"before": Expected(**data["before"]), "ample": None if ample is None else Ample(**ample)}
        return cls(**{name: values[name] for name in names})
