"""Jobs over processes with one thread each, with a progress bar, resumable because each job keeps its own result."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# One thread for numerics, none extra for a software renderer: more would fight for the cores that the workers share.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@contextmanager
def progress_bar(title: str, total: int, show: bool) -> Iterator[Callable[[str], None]]:
    """A bar; the function that is handed out says what has been finished and moves it on by one."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, advance=1, description=f"{title}: {done}")


def run_jobs(job: Callable[[Any], Any], jobs: Sequence[Any], workers: int, on_done: Callable[[Any, Any], None]) -> None:
    """Runs `job(item)` for each item in `workers` processes; with one worker, in this process.

    Args:
        job: a module-level function.
        jobs: picklable arguments.
        workers: processes.
        on_done: called here with (item, result) as jobs finish, in any order.

    Raises:
        RuntimeError: a worker died (out of memory, most likely). What a job raises is raised here.
    """
    if workers <= 1 or len(jobs) <= 1:
        for item in jobs:
            on_done(item, job(item))
        return
    with _environment(WORKER_ENVIRONMENT):
        # Spawned, not forked: torch's threads and the renderer's context do not survive a fork.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), _start)
        try:
            futures: dict[Future, Any] = {pool.submit(job, item): item for item in jobs}
            for future in as_completed(futures):
                on_done(futures[future], future.result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker died, probably for lack of memory; run the same command with fewer workers: finished bodies "
                "are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    import torch

    torch.set_num_threads(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
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
