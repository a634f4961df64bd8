"""`Learner`: keeps what robots do, and aligns their contexts to it in the background. Acting never waits for it.

robots' steps --queue--> a thread writes them to each body's ring
a second thread: what is due? --job--> the aligner's process --result--> store, then swap
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from selfalign.model.context import EmbodimentContext
from selfalign.online.aligner import AlignerError
from selfalign.online.body import LearningBody
from selfalign.online.config import LearnConfig
from selfalign.online.experience import Step
from selfalign.online.jobs import Job

log = logging.getLogger(__name__)
QUEUE = 64
"""Steps that may wait to be written; further ones are lost."""
LONGEST_PAUSE = 300.0
"""Seconds before the next try, after an aligner that ends again and again."""


class RunsJobs(Protocol):
    """`Aligner`."""

    def run(self, job: Job) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Learner:
    """Online alignment of all bodies of a server.

    `adopt` tells what each body acts with, `start` begins, `stop` ends; `record` takes steps in between.

    Args:
        folder: where steps and contexts are kept; of one process at a time.
        config: when to do what.
        horizon: H of the model.
        fingerprint: of the model.
        aligner: runs the jobs.

    Raises:
        OSError: not writable.
        ValueError: another process uses the folder.
    """

    def __init__(self, folder: Path, config: LearnConfig, horizon: int, fingerprint: str, aligner: RunsJobs):
        self.config = config
        self._folder, self._horizon, self._fingerprint, self._aligner = folder, horizon, fingerprint, aligner
        folder.mkdir(parents=True, exist_ok=True)
        self._mine = _claim(folder / "lock")
        self._bodies: dict[str, LearningBody] = {}
        self._swap: Callable[[str, EmbodimentContext], None] = lambda name, context: None
        self._changing = threading.RLock()
        """Held while disk and memory change to another context, so that they never name different ones."""
        self._news = threading.Condition()
        self._stopping = False
        self._not_before = self._pause = 0.0
        self._waiting = threading.BoundedSemaphore(QUEUE)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._thread = threading.Thread(target=self._run, name="learn", daemon=True)

    def adopt(self, name: str, given: EmbodimentContext) -> EmbodimentContext:
        """What a body is to act with: the context that the operator gives, or what was learned since (see
        `ContextVersions.adopt`). Where its files cannot be used, it acts with `given` and learns nothing."""
        with self._changing:
            try:
                if name not in self._bodies:
                    self._bodies[name] = LearningBody(self._folder, name, self.config, self._horizon, self._fingerprint)
                return self._bodies[name].adopt(given)
            except (OSError, ValueError) as error:
                log.error("%r learns nothing: %s", name, error)
                self._bodies.pop(name, None)
                return given

    def start(self, swap: Callable[[str, EmbodimentContext], None]) -> None:
        """Begins; `swap` puts a context into use, in whichever thread."""
        self._swap = swap
        self._thread.start()

    def stop(self) -> None:
        """Writes what waits to be written, and ends the job that is under way."""
        self._writer.shutdown(wait=True)
        with self._news:
            self._stopping = True
            self._news.notify_all()
        self._aligner.close()
        if self._thread.is_alive():
            self._thread.join()
        for body in self._bodies.values():
            body.close()
        os.close(self._mine)

    # ---- steps -----------------------------------------------------------------------------------------------------

    def record(self, name: str, make: Callable[[], Step]) -> None:
        """Keeps a step of a body, in its own time: returns at once. `make` is called in another thread."""
        body = self._bodies.get(name)
        if body is None:
            return
        if not self._waiting.acquire(blocking=False):
            body.lost, body.problem = body.lost + 1, "the disk is slower than the robots"
            return
        try:
            self._writer.submit(self._write, body, make)
        except RuntimeError:  # it is stopping
            self._waiting.release()

    def _write(self, body: LearningBody, make: Callable[[], Step]) -> None:
        try:
            body.add(make())
        except Exception:
            log.exception("a step of %r is lost", body.name)
            body.lost += 1
        finally:
            self._waiting.release()
        with self._news:
            self._news.notify_all()

    # ---- the background --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (due := self._next()) is not None:
            body, job = due
            try:
                reply = self._aligner.run(job)
                self._pause = 0.0
                self._finish(body, job, reply)
            except AlignerError as error:
                if not self._stopping:
                    self._fail(body, job, str(error))
            except Exception as error:
                log.exception("a job of %r failed", body.name)
                self._fail(body, job, f"{type(error).__name__}: {error}")

    def _next(self) -> tuple[LearningBody, Job] | None:
        """Waits until something is due; None: the end."""
        with self._news:
            while not self._stopping:
                left = self._not_before - time.monotonic()
                if left <= 0:
                    for body in list(self._bodies.values()):
                        if (job := body.next_job()) is not None:
                            return body, job
                self._news.wait(left if left > 0 else None)
        return None

    def _finish(self, body: LearningBody, job: Job, reply: dict[str, Any]) -> None:
        with self._changing:
            context = body.finished(job, reply)
            if context is not None:
                self._swap(body.name, context)
                log.info("%r acts with version %d", body.name, body.versions.current)

    def _fail(self, body: LearningBody, job: Job, why: str) -> None:
        log.error("%r: %s", body.name, why)
        body.failed(job, why)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause or 1.0)
        self._not_before = time.monotonic() + self._pause

    # ---- commands --------------------------------------------------------------------------------------------------

    def align_now(self, name: str) -> None:
        """Asks for an alignment of a body on the steps that there are.

        Raises:
            LookupError: nothing is learned of such a body.
        """
        self._body(name).wanted = "operator"
        with self._news:
            self._news.notify_all()

    def rollback(self, name: str, version: int | None = None) -> int:
        """Puts an older version into use and returns its number; errors as `ContextVersions.rollback`, and of
        `align_now`."""
        body = self._body(name)
        with self._changing:
            self._swap(name, body.rollback(version, by="operator"))
            return body.versions.current

    def status(self) -> dict[str, Any]:
        """JSON values, by body."""
        return {name: body.status() for name, body in sorted(self._bodies.items())}

    def _body(self, name: str) -> LearningBody:
        if name not in self._bodies:
            known = ", ".join(sorted(self._bodies)) or "nobody"
            raise LookupError(f"nothing is learned of {name[:100]!r}; learning are {known}")
        return self._bodies[name]


def _claim(path: Path) -> int:
    """A lock that lasts as long as the process, whatever ends it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ValueError(f"{path.parent} is used by another server; give each its own --learn folder") from error
    return handle
