"""`DriftMonitors`: tells from a series of play losses when a robot has changed, for example when its camera was bumped.

The loss of the context in use is measured on window after window of new transitions, always with the same noise and
flow times. The first windows say what is usual, and how much it varies. Some windows in a row far above it are a drift;
it is over when the loss is near the usual again. Between the two thresholds nothing changes (hysteresis), so a loss at
a threshold does not flicker.

Each part of the loss is watched beside the total. A camera that is bumped a little raises one part to several times the
usual, while the total, which varies with what the robot happens to do, rises by less than it varies.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

TOTAL = "total"
"""Name of the play loss itself, beside those of its parts."""
MOST = 1.0
"""A loss of more than twice the usual one is always too high, however much the first windows varied."""


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

    drift_sigmas: float = 4.0
    """Standard deviations of the first windows' losses, above the usual one, from which a window is too high."""
    drift_margin: float = 0.15
    """The same as a share of the usual loss, at least: few windows may be alike by chance."""
    drift_part_margin: float = 0.5
    """The same for each part of the loss, which needs a window more than the total to be believed."""
    drift_calm: float = 0.5
    """Part of that distance below which a drift is over."""
    drift_patience: int = 2
    """Windows in a row that must be too high."""
    drift_calibration: int = 6
    """Windows whose median is the usual loss."""

    def __post_init__(self) -> None:
        margins = 0 <= self.drift_margin <= MOST and 0 <= self.drift_part_margin <= MOST
        shares = margins and 0 <= self.drift_calm <= 1 and self.drift_sigmas >= 0
        if not shares or min(self.drift_patience, self.drift_calibration) < 1:
            raise ValueError(
                f"drift: needs drift_margin and drift_part_margin in [0, {MOST:g}], drift_calm in [0, 1], drift_sigmas "
                f"of 0 at least, and a window at least to calibrate and to be patient; got {self}"
            )

    def margin(self, losses: Sequence[float]) -> float:
        """Share above the median of the first windows from which a window is too high."""
        spread = statistics.stdev(losses) / statistics.median(losses) if len(losses) > 1 else 0.0
        return min(max(self.drift_margin, self.drift_sigmas * spread), MOST)


@dataclass
class DriftMonitor:
    """Watches one number. Call `update` with that of each window, and `reset` when another context is in use."""

    config: DriftConfig = DriftConfig()
    reference: float | None = None
    """The usual loss, where it is known from before."""
    margin: float = 0.0
    """Share above it from which a window is too high."""
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
        """Takes the next window's loss; one that is not finite is as high as can be, and no part of what is usual, and
        neither is 0: a part of the loss that is not measured."""
        if self.reference is None:
            if math.isfinite(loss) and loss > 0:
                self._first.append(loss)
            if len(self._first) >= self.config.drift_calibration:
                self.reference, self.margin = statistics.median(self._first), self.config.margin(self._first)
            return self.state
        ratio = loss / self.reference - 1 if math.isfinite(loss) else math.inf
        if self.drifted:
            self.drifted = ratio >= self.config.drift_calm * self.margin
            self._high = 0
        else:
            self._high = self._high + 1 if ratio > self.margin else 0
            self.drifted = self._high >= self.config.drift_patience
        return self.state

    def reset(self, reference: float | None = None, margin: float | None = None) -> None:
        """Begins anew; without a reference, the next windows give it. Without a margin, it is the least one."""
        self.reference, self.drifted, self._high = reference, False, 0
        self.margin = self.config.drift_margin if margin is None else margin
        self._first.clear()


class DriftMonitors:
    """A `DriftMonitor` for the play loss and one for each of its parts; used as one of them."""

    def __init__(self, config: DriftConfig):
        self._config = config
        self.reset({})

    def reset(self, usual: Mapping[str, tuple[float, float | None]]) -> None:
        """Begins anew; what is not in `usual` (loss and margin by name) is learned from the next windows."""
        self._all = {TOTAL: DriftMonitor(self._config)}
        for name, (reference, margin) in usual.items():
            self._of(name).reset(reference, margin)

    def _of(self, name: str) -> DriftMonitor:
        if name not in self._all:
            config, patience = (
                self._config,
                self._config.drift_patience + 1,
            )  # parts have more outliers
            config = replace(config, drift_margin=config.drift_part_margin, drift_patience=patience)
            self._all[name] = DriftMonitor(config)
        return self._all[name]

    @property
    def total(self) -> DriftMonitor:
        """Of the play loss itself."""
        return self._all[TOTAL]

    @property
    def state(self) -> Drift:
        """The most serious of all, once it is known what loss is usual."""
        states = [monitor.state for monitor in self._all.values()]
        if self.total.reference is None:
            return Drift.CALIBRATING
        return next((state for state in (Drift.DRIFTED, Drift.SUSPECTED) if state in states), Drift.STEADY)

    @property
    def drifted(self) -> list[str]:
        """Names of those that have."""
        return [name for name, monitor in self._all.items() if monitor.drifted]

    @drifted.setter
    def drifted(self, names: Collection[str]) -> None:
        for name in {*self._all, *names}:
            self._of(name).drifted = name in names

    def update(self, losses: Mapping[str, float]) -> Drift:
        """Takes the next window's loss (`total`) and its parts."""
        for name, loss in losses.items():
            self._of(name).update(loss)
        return self.state

    def usual(self) -> dict[str, tuple[float, float]]:
        """What `reset` takes, of all that is known."""
        return {name: (m.reference, m.margin) for name, m in self._all.items() if m.reference is not None}
