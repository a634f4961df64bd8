"""`DriftMonitor`: tells from a series of play losses when a robot has changed, for example when its camera was bumped.

The loss of the context in use is measured on window after window of new transitions, always with the same noise and
flow times. The first windows say what is usual. Some windows in a row far above it are a drift; it is over when the
loss is near the usual again. Between the two thresholds nothing changes (hysteresis), so a loss at a threshold does not
flicker.
"""

import math
import statistics
from dataclasses import dataclass, field
from enum import StrEnum


class Drift(StrEnum):
    """What the losses so far say."""

    CALIBRATING = "calibrating"
    """It is not known yet what is usual."""
    STEADY = "steady"
    SUSPECTED = "suspected"
    """The last windows were too high, but not yet enough of them."""
    DRIFTED = "drifted"


@dataclass(frozen=True)
class DriftConfig:
    """When a rise of the loss is a drift."""

    drift_margin: float = 0.3
    """Share above the usual loss from which a window is too high."""
    drift_calm: float = 0.15
    """Share above the usual loss below which a drift is over."""
    drift_patience: int = 2
    """Windows in a row that must be too high."""
    drift_calibration: int = 3
    """Windows whose median is the usual loss."""

    def __post_init__(self) -> None:
        if not 0 <= self.drift_calm <= self.drift_margin or min(self.drift_patience, self.drift_calibration) < 1:
            raise ValueError(
                "drift: needs 0 <= drift_calm <= drift_margin and at least one window to calibrate and to be patient; "
                f"got {self}"
            )


@dataclass
class DriftMonitor:
    """Call `update` with the loss of each window, and `reset` when another context is in use."""

    config: DriftConfig = DriftConfig()
    reference: float | None = None
    """The usual loss, where it is known from before."""
    drifted: bool = False
    _first: list[float] = field(default_factory=list)
    _high: int = 0

    @property
    def state(self) -> Drift:
        if self.reference is None:
            return Drift.CALIBRATING
        if self.drifted:
            return Drift.DRIFTED
        return Drift.SUSPECTED if self._high else Drift.STEADY

    def update(self, loss: float) -> Drift:
        """Takes the next window's loss; one that is not finite is as high as can be, and no part of what is usual."""
        if self.reference is None:
            if math.isfinite(loss):
                self._first.append(loss)
            if len(self._first) >= self.config.drift_calibration:
                self.reference = statistics.median(self._first)
            return self.state
        ratio = loss / self.reference - 1 if math.isfinite(loss) else math.inf
        if self.drifted:
            self.drifted = ratio >= self.config.drift_calm
            self._high = 0
        else:
            self._high = self._high + 1 if ratio > self.config.drift_margin else 0
            self.drifted = self._high >= self.config.drift_patience
        return self.state

    def reset(self, reference: float | None = None) -> None:
        """Begins anew; without a reference, the next windows give it."""
        self.reference, self.drifted, self._high = reference, False, 0
        self._first.clear()
