"""`LearningBody`: one body's steps, versions and drift, and what is due next. Starts no process and no thread."""

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from pathlib import Path
from typing import Any

from selfalign.model.context import EmbodimentContext
from selfalign.online.config import LearnConfig
from selfalign.online.drift import TOTAL, Drift, DriftMonitors
from selfalign.online.experience import LOOKS, Step, TransitionCounter
from selfalign.online.jobs import AlignJob, Job, Material, MeasureJob
from selfalign.online.ring import Ring
from selfalign.online.versions import REJECTED, ContextVersions, Event

BEFORE = "before"
"""The version before the one in use, in measurements."""
CALIBRATED, DRIFTED, CALM = "calibrated", "drift began", "drift over"
FAILED, DISCARDED, RENEWED = "failed", "discarded", "renewed"
SHOWN = 200
"""Losses and events that `status` has."""
Usual = dict[str, tuple[float, float | None]]
"""Usual loss and margin, by part."""


class LearningBody:
    """Safe for threads; one process at a time.

    Args:
        folder: holds `contexts` (see `ContextVersions`) and `steps` of all bodies.
        name: of the body.
        config: when to do what.
        horizon: H of the model.
        fingerprint: of the model.

    Raises:
        OSError: not writable.
        ValueError: a journal that is none.
    """

    def __init__(self, folder: Path, name: str, config: LearnConfig, horizon: int, fingerprint: str):
        self.name, self._config = name, config
        self.versions = ContextVersions(folder / "contexts", name, fingerprint, keep=config.keep_versions)
        self.ring = Ring(folder / "steps" / self.versions.folder.name, config.ring_bytes)
        self.lock = threading.RLock()
        self.lost, self.problem = 0, ""
        """Steps that could not be kept, and why the last one could not."""
        self.wanted = ""
        """Who has asked for an alignment."""
        self.busy: Job | None = None
        self.losses: deque[tuple[float, dict[str, float]]] = deque(maxlen=SHOWN)
        self._candidate = self.versions.folder / "candidate.safetensors"
        self._counter = TransitionCounter(horizon)
        self._completed: deque[int] = deque(
            maxlen=max(config.align_max, config.align_every, config.align_min, config.window)
        )
        """Numbers of the records that completed transitions."""
        self._window_start = self._tried = self._suspect = self.ring.end
        self._probation = self._worse = 0
        self._since, self.monitor = self._remembered()

    def _remembered(self) -> tuple[int, DriftMonitors]:
        """Since when the body has been what it is, and what is usual, from the journal."""
        since, monitor = 0, DriftMonitors(self._config.drift)
        for event in self.versions.events:
            since = event.about.get("since", since)
            if event.kind == CALIBRATED:
                monitor.reset(_usual_of(event))
            elif event.kind in (DRIFTED, CALM):
                monitor.drifted = event.about.get("parts", [TOTAL]) if event.kind == DRIFTED else []
            elif event.kind not in (REJECTED, FAILED, DISCARDED, RENEWED):  # another context is in use
                monitor.reset(self._usual(event.version))
        return since, monitor

    def _usual(self, version: int) -> Usual:
        """The usual losses of a version and their margins, where it was in use before."""
        known = [_usual_of(e) for e in self.versions.events if (e.kind, e.version) == (CALIBRATED, version)]
        return known[-1] if known else {}

    def adopt(self, given: EmbodimentContext) -> EmbodimentContext:
        """As `ContextVersions.adopt`. Steps from before a new context was given are of a body that was another one."""
        with self.lock:
            before = self.versions.current
            context = self.versions.adopt(given)
            if before and self.versions.current != before:
                self._swapped(0)
                self._since = self.ring.end
                self.versions.note(RENEWED, since=self._since)
            return context

    # ---- steps -----------------------------------------------------------------------------------------------------

    def add(self, step: Step) -> None:
        """Keeps a step; where that is not possible, counts it as lost."""
        with self.lock:
            try:
                number = self.ring.append(step.pack())
            except (OSError, ValueError) as error:
                self.lost, self.problem = self.lost + 1, str(error)
                return
            self.problem = ""
            if self._counter.add(step):
                self._completed.append(number)

    def _new(self, since: int) -> int:
        """Transitions that were completed by records from `since` on."""
        return len(self._completed) - bisect_left(self._completed, since)

    # ---- what to do ------------------------------------------------------------------------------------------------

    def next_job(self) -> Job | None:
        """What is due now, if anything. Its end must be told by `finished` or `failed`."""
        with self.lock:
            if self.busy is not None or not self.versions.current:
                return None
            if not self.wanted and self._new(self._window_start) >= self._config.window:
                self.busy = self._measure()
            elif reason := self.wanted or self._due():
                self.wanted, self.busy = reason, self._align()
            return self.busy

    def _due(self) -> str:
        new = self._new(max(self._since, self._tried))
        if self.monitor.state is Drift.DRIFTED and new >= self._config.align_min:
            return "drift"
        return "count" if self._config.align_every and new >= self._config.align_every else ""

    def _measure(self) -> Job:
        others = {}
        previous = self.versions.previous if self._probation else None
        if previous is not None:
            others[BEFORE] = self.versions.path(previous)
        first = max(0, self._window_start - LOOKS)  # a transition that a new look completes may have begun earlier
        material = Material(self.name, self.ring.snapshot(), first, self._config.window)
        return MeasureJob(material, self.versions.path(self.versions.current), others)

    def _align(self) -> Job:
        config, first = self._config, self._since
        if len(self._completed) >= config.align_max:
            first = max(first, self._completed[-config.align_max] - LOOKS)
        material = Material(self.name, self.ring.snapshot(), first, config.align_max)
        live = self.versions.path(self.versions.current)
        return AlignJob(material, live, self._candidate, config.align_steps, config.align_improvement)

    # ---- what came of it -------------------------------------------------------------------------------------------

    def failed(self, job: Job, why: str) -> None:
        """A job without result: everything stays as it is, and the same data are not tried again."""
        with self.lock:
            self.busy = None
            if isinstance(job, AlignJob):
                self.versions.note(FAILED, by=self._asked(), why=why)
            else:
                self._window_start = self.ring.end

    def finished(self, job: Job, reply: dict[str, Any]) -> EmbodimentContext | None:
        """Takes a job's result. Returns a context that is to be acted with from now on; None: all stays as it is.

        Raises:
            OSError: an accepted context could not be stored; what was in use still is.
            ValueError: an accepted context that is damaged.
        """
        with self.lock:
            self.busy = None
            stale = job.live != self.versions.path(self.versions.current)  # somebody has changed it meanwhile
            if isinstance(job, AlignJob):
                return self._aligned(reply, stale)
            self._window_start = self.ring.end
            return None if stale else self._measured(reply["losses"], reply["parts"])

    def _measured(self, losses: dict[str, float], parts: dict[str, float]) -> EmbodimentContext | None:
        self.losses.append((time.time(), losses))
        if BEFORE in losses:
            self._probation -= 1
            worse = not losses["live"] <= losses[BEFORE] * (1 + self._config.rollback_margin)
            self._worse = self._worse + 1 if worse else 0
            if self._worse >= self._config.rollback_patience:
                why = f"its play loss is {losses['live']:.3g}, that of the version before {losses[BEFORE]:.3g}"
                return self.rollback(by="the server", why=why)
        self._watched({TOTAL: losses["live"], **parts})
        return None

    def _watched(self, losses: dict[str, float]) -> None:
        """What a window's loss and its parts say of a drift."""
        before, total = self.monitor.state, self.monitor.total
        after = self.monitor.update(losses)
        if before is Drift.CALIBRATING and after is not before:
            parts = {name: usual for name, usual in self.monitor.usual().items() if name != TOTAL}
            self.versions.note(CALIBRATED, reference=total.reference, margin=total.margin, parts=parts)
        if after is Drift.SUSPECTED and before is not after:
            self._suspect = self.ring.end  # what comes from here on is of the body as it is now
        if after is Drift.DRIFTED and before is not after:
            self._since = self.ring.end if before is not Drift.SUSPECTED else self._suspect
            usual = self.monitor.usual()
            parts = {name: (losses[name], usual[name][0]) for name in self.monitor.drifted}
            self.versions.note(DRIFTED, since=self._since, loss=losses[TOTAL], usual=total.reference, parts=parts)
        if before is Drift.DRIFTED and after is not before:
            self._since = self.ring.end  # the steps in between are of the body as it was while it lasted
            self.versions.note(CALM, since=self._since, loss=losses[TOTAL], usual=total.reference)

    def _aligned(self, reply: dict[str, Any], stale: bool) -> EmbodimentContext | None:
        about = {name: value for name, value in reply.items() if name != "accepted"} | {"by": self._asked()}
        if not reply["accepted"] or stale:
            self.versions.note(DISCARDED if stale else REJECTED, **about)
            return None
        context = EmbodimentContext.load(self._candidate, fingerprint=self.versions.fingerprint)
        if not all(t.isfinite().all() for t in context.tensors):
            raise ValueError("the fitted context has weights that are NaN or infinite")
        self.versions.accept(context, **about)
        self._candidate.unlink(missing_ok=True)
        self._swapped(self._config.probation)
        return self.versions.load()

    def _asked(self) -> str:
        """Who asked for the alignment that has ended; the next one needs new steps."""
        by, self.wanted, self._tried = self.wanted, "", self.ring.end
        return by

    def _swapped(self, probation: int) -> None:
        self.monitor.reset(self._usual(self.versions.current))
        self._probation, self._worse, self._window_start = probation, 0, self.ring.end

    def rollback(self, version: int | None = None, **about: Any) -> EmbodimentContext:
        """As `ContextVersions.rollback`; what was tried on the steps so far is not tried again."""
        with self.lock:
            context = self.versions.rollback(version, **about)
            self._swapped(0)
            self._tried = self.ring.end
            return context

    # ---- for people ------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """JSON values."""
        with self.lock:
            config, ring = self._config, self.ring
            return {
                "version": self.versions.current,
                "versions": self.versions.numbers,
                "events": [event.to_dict() for event in self.versions.events[-SHOWN:]],
                "counts": Counter(event.kind for event in self.versions.events),
                "drift": self.monitor.state.value,
                "usual_loss": self.monitor.total.reference,
                "drift_margin": self.monitor.total.margin,
                "losses": [[when, losses] for when, losses in self.losses],
                "busy": "" if self.busy is None else "aligning" if isinstance(self.busy, AlignJob) else "measuring",
                "transitions": self._new(0),
                "new_transitions": self._new(max(self._since, self._tried)),
                "wanted_transitions": config.align_min if self.monitor.drifted else config.align_every,
                "buffer": {"bytes": ring.size, "of": ring.max_bytes, "steps": ring.end - ring.start},
                "lost_steps": self.lost,
                "problem": self.problem,
            }

    def close(self) -> None:
        with self.lock:
            self.ring.close()
            self.versions.close()


def _usual_of(event: Event) -> Usual:
    """What a `calibrated` says; journals of older versions lack margins and parts."""
    parts = {name: (reference, margin) for name, (reference, margin) in event.about.get("parts", {}).items()}
    return {TOTAL: (event.about["reference"], event.about.get("margin")), **parts}
