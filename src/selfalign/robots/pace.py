"""`Pace`: control steps at a steady rate, and how often they were late."""

import time
from collections.abc import Callable


class Pace:
    """Waits for the next control step. A step that is late is not caught up with: the next one is a full period later.

    Args:
        hz: steps a second.
        clock, sleep: replaced in tests.
    """

    def __init__(
        self,
        hz: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.period, self._clock, self._sleep = 1.0 / hz, clock, sleep
        self.steps = self.late = 0
        self.worst = 0.0
        """Seconds that the latest step was late."""
        self._due = 0.0

    def begin(self) -> None:
        """The first step is now."""
        self._due = self._clock() + self.period

    def wait(self) -> None:
        """Returns when the next step is due."""
        now = self._clock()
        self.steps += 1
        if now > self._due:
            self.late += 1
            self.worst = max(self.worst, now - self._due)
            self._due = now
        else:
            self._sleep(self._due - now)
        self._due += self.period

    def report(self) -> str:
        """One line."""
        if not self.late:
            return f"all {self.steps} steps in time"
        share, worst = self.late / self.steps, 1000 * self.worst
        return f"{self.late} of {self.steps} steps late ({share:.1%}), the worst by {worst:.0f} ms"


class NoPace(Pace):
    """For simulators: the next step is due at once."""

    def wait(self) -> None:
        self.steps += 1
