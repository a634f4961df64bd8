"""Recording with worker processes: one progress bar, parts that are kept when it is interrupted."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_done: Any = None


def count_one() -> None:
    """A job says that one more of what it records is done; outside of a worker this does nothing."""
    if _done is not None:
        with _done.get_lock():
            _done.value += 1


def run_workers(
    job: Callable[..., None], calls: Sequence[tuple], total: int, workers: int | None, progress: bool, unit: str
) -> None:
    """Runs `job(*call)` for each call.

    Args:
        job: a module-level function that calls `count_one` as it goes.
        calls: picklable arguments.
        total: how often `count_one` will be called.
        workers: processes; None: one per core, at most 8. 0: in this process, without a bar.
        progress: show a bar on the terminal.
        unit: what is counted.

    Raises:
        RuntimeError: a worker died (out of memory, most likely). What a job raises is raised here.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), 8)
    if workers == 0:
        for call in calls:
            job(*call)
        return
    if not calls:
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    columns = TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()
    # A software renderer that starts its own threads in each worker is slower than one thread each.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    with (
        Progress(*columns, disable=not progress) as bar,
        ProcessPoolExecutor(min(workers, len(calls)), context, _start_worker, (counter,)) as pool,
    ):
        task = bar.add_task("", total=total)
        pending: set[Future] = {pool.submit(job, *call) for call in calls}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(task, completed=counter.value)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a recording worker died; run again with fewer workers to go on where it stopped"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def claim(out: Path, plan: str, parts: str) -> None:
    """Marks a folder as that of a plan, so that no other recording is mixed into it.

    Args:
        out: made where needed.
        plan: the plan as text.
        parts: glob of what a recording leaves in it.

    Raises:
        ValueError: the folder holds the recording of another plan, or of none that is known.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "plan.json"
    if not path.exists():
        if any(out.glob(parts)):
            raise ValueError(f"{out} has {parts} but no {path.name}; choose another folder")
        path.write_text(plan, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != plan:
        raise ValueError(f"{out} holds the recording of another plan (see {path}); choose another folder or remove it")


def _start_worker(counter: Any) -> None:
    global _done
    _done = counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers; without this they would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
