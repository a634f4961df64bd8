"""Jobs over processes of one thread each, with a progress bar.

Each job keeps its own result on disk, so that a run that was interrupted goes on where it stopped.
"""

import itertools
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
_BETWEEN = 0.1
"""Seconds between two pictures of a bar that draws itself."""

# One thread for numerics, none extra for a software renderer: more would fight for the cores that the workers share.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@dataclass(frozen=True)
class Bar:
    """A progress bar on the terminal."""

    progress: Progress
    task: TaskID
    title: str

    def finished(self, name: str) -> None:
        """One more is done: this one."""
        self.progress.update(self.task, advance=1, description=f"{self.title}: {name}")

    def at(self, count: int) -> None:
        """So many are done."""
        self.progress.update(self.task, completed=count)


@contextmanager
def progress_bar(title: str, total: int, show: bool) -> Iterator[Bar]:
    """A bar that is shown, or not, while the context lasts."""
    columns = (
        TextColumn("{task.description:<28}", markup=False),  # names are anybody's: `[v2]` is no style
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as progress:
        yield Bar(progress, progress.add_task(title, total=total), title)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The same items, with a bar of how many were taken.

    rich's own `track` has two threads: one that is still there when the loop is abandoned half-way may wait for ever
    for the other, if Python collects the loop in it. This has none.

    Args:
        items: any.
        description: what is done with them.
        total: how many there are; None: as `items` says.
    """
    with Progress(auto_refresh=False) as progress:
        task, shown = progress.add_task(description, total=length_hint(items) if total is None else total), -math.inf
        for item in items:
            yield item
            progress.advance(task)
            if (now := time.monotonic()) - shown > _BETWEEN:
                progress.refresh()
                shown = now
        progress.refresh()


_count: Callable[[], None] = lambda: None  # noqa: E731  what `count_one` does in this process


def count_one() -> None:
    """A job says that one more of what it makes is there; outside of `run_jobs` this does nothing."""
    _count()


def run_jobs(
    job: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int | None,
    *,
    on_done: Callable[[Any, Any], None] = lambda item, result: None,
    on_count: Callable[[int], None] = lambda count: None,
) -> None:
    """Runs `job(item)` for each item.

    Args:
        job: a module-level function; it may call `count_one` as it goes.
        jobs: picklable arguments.
        workers: processes; None: one per core, at most 8. Up to 1: in this process.
        on_done: called here with (item, result) as jobs finish, in any order.
        on_count: called here, now and then, with how often jobs have called `count_one`.

    Raises:
        RuntimeError: a worker died (out of memory, most likely). What a job raises is raised here.
    """
    workers = min(len(os.sched_getaffinity(0)), 8) if workers is None else workers
    if workers <= 1 or len(jobs) <= 1:
        with _counting_here(on_count):
            for item in jobs:
                on_done(item, job(item))
        return
    # Spawned, not forked: torch's threads and the renderer's context do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with environment(WORKER_ENVIRONMENT):
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (counter,))
        try:
            items: dict[Future, Any] = {pool.submit(job, item): item for item in jobs}
            pending = set(items)
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                on_count(counter.value)
                for future in done:
                    on_done(items[future], future.result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker died, probably for lack of memory; run the same command with fewer workers: what is finished "
                "is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(counter: Any) -> None:
    global _count

    def count() -> None:
        with counter.get_lock():
            counter.value += 1

    _count = count
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers; without this they would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _counting_here(on_count: Callable[[int], None]) -> Iterator[None]:
    global _count
    before, numbers = _count, itertools.count(1)
    _count = lambda: on_count(next(numbers))  # noqa: E731
    try:
        yield
    finally:
        _count = before


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that processes which are started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
