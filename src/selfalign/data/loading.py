"""Loading ahead of a training: worker processes fetch what its next steps read, in the order in which they read it."""

import atexit
import gc
import signal
import weakref
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Request = TypeVar("Request")
Result = TypeVar("Result")

AHEAD = 2
"""Requests that each worker is given ahead of who reads the results."""


def fetch_ahead(
    fetch: Callable[[Request], Result], requests: Iterable[Request], workers: int = 0, ahead: int = AHEAD
) -> Generator[Result, None, None]:
    """`fetch(request)` of each request, in their order, whichever worker is done first.

    Requests are taken in this process and ahead of the results: what they are must not depend on what the caller does
    with those. With workers, results come through shared memory (/dev/shm), which `ahead * workers` of them must fit.
    Closing the iterator ends the workers; so do an error and the program's end. It uses no global random numbers.

    Args:
        fetch: any callable, which takes and returns what can be pickled. Workers are forked, so what it holds (arrays,
            memory maps, models on the CPU) is shared and not copied.
        workers: processes; 0: `fetch` runs here, when its result is asked for.

    Raises:
        ValueError: a negative number of workers.
        RuntimeError: a worker died. What `fetch` raises is raised here.
    """
    if workers < 0:
        raise ValueError(f"{workers} workers cannot load data; give 0 (none) or more")
    if workers == 0:
        return (fetch(request) for request in requests)
    results = _fetched(fetch, requests, workers, ahead)
    _unfinished.add(results)
    return results


_unfinished: "weakref.WeakSet[Generator]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    # Python ends processes by SIGTERM and waits for them; workers ignore it (see `_begin`), so that it would for ever.
    for results in list(_unfinished):
        results.close()


def _fetched(
    fetch: Callable[[Request], Result], requests: Iterable[Request], workers: int, ahead: int
) -> Generator[Result, None, None]:
    loader = DataLoader(
        _Fetching(fetch),
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # else it draws a number from the global one
    )
    results: Any = iter(loader)
    try:
        while (result := _next(results)) is not _END:
            if isinstance(result, _Failed):
                raise result.error
            yield result
    finally:
        results._shutdown_workers()  # torch does so once nothing holds the iterator, but the traceback of an error does


_END = object()


def _next(results: Any) -> Any:
    try:
        return next(results, _END)
    except RuntimeError as error:
        raise RuntimeError(
            f"a worker that loads data died, probably for lack of memory ({str(error).strip()}); go on with fewer "
            "workers (0: none), or give the machine more shared memory (/dev/shm)"
        ) from error


@dataclass(frozen=True)
class _Failed:
    """What `fetch` raised, to be raised as it is in the other process."""

    error: Exception


class _Fetching(Dataset):
    def __init__(self, fetch: Callable):
        self.fetch = fetch

    def __getitem__(self, request):
        try:
            return self.fetch(request)
        except Exception as error:
            return _Failed(error)


def _as_it_is(result):
    return result


def _begin(worker: int) -> None:
    # Ctrl-C and schedulers signal all processes; the parent finishes its step, for which it needs the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # what the parent left to be collected may have threads there, for which its end would wait in vain
