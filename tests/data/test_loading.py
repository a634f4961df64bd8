"""Loading ahead: the same results in the same order with any number of workers, and clear ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from selfalign.data.loading import fetch_ahead

COUNT = 7


def slow_at_first(number: int) -> torch.Tensor:
    time.sleep(0.05 * (number % 2 == 0))
    return torch.arange(4) * number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_their_requests(workers):
    before = torch.get_rng_state()
    found = list(fetch_ahead(slow_at_first, range(COUNT), workers))
    torch.testing.assert_close(torch.stack(found), torch.outer(torch.arange(COUNT), torch.arange(4)))
    assert torch.equal(torch.get_rng_state(), before), "the training's random numbers are its own"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_run_ahead_by_so_many_requests_and_end_with_the_iterator():
    taken = []
    requests = (taken.append(number) or number for number in range(100))
    results = fetch_ahead(lambda number: (number, os.getpid()), requests, workers=2, ahead=3)
    found = [next(results) for _ in range(4)]
    assert [number for number, _ in found] == [0, 1, 2, 3] and len(taken) <= 4 + 2 * 3
    workers = {pid for _, pid in found}
    assert len(workers) == 2 and os.getpid() not in workers and all(map(alive, workers))
    results.close()
    assert not any(map(alive, workers))


def test_without_workers_nothing_is_asked_for_early():
    taken = []
    results = fetch_ahead(abs, (taken.append(number) or number for number in range(9)))
    assert next(results) == 0 and taken == [0]


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("frame 3 is damaged")
    return number


@pytest.mark.parametrize("workers", [0, 1])
def test_what_fetching_raises_is_raised_here(workers):
    results = fetch_ahead(fails_at_three, range(COUNT), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^frame 3 is damaged$"):
        next(results)


def dies_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_dies_is_told():
    with pytest.raises(RuntimeError, match=r"a worker that loads data died.*go on with fewer workers"):
        list(fetch_ahead(dies_at_three, range(COUNT), workers=1, ahead=1))


def divides_by_zero_at_one(number: int) -> int:
    return os.getpid() if number == 0 else 1 // 0


def test_an_error_that_is_kept_keeps_no_worker():
    """Its traceback holds everything that was there when it was raised."""
    results = fetch_ahead(divides_by_zero_at_one, range(3), workers=1)
    worker = next(results)
    with pytest.raises(ZeroDivisionError) as kept:
        next(results)
    assert kept.value.__traceback__ is not None and not alive(worker)


def test_a_program_that_fails_beside_its_workers_ends(tmp_path):
    """Python waits for processes at its end, and these ignore what it sends them; the uncaught error holds them."""
    (tmp_path / "fails.py").write_text(
        "from selfalign.data.loading import fetch_ahead\n"
        "def training():\n"
        "    results = fetch_ahead(abs, range(9), workers=1)\n"
        "    raise SystemError(f'at {next(results)}')\n"
        "training()\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fails.py")],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.endswith("SystemError: at 0\n")


def test_a_signal_to_all_processes_does_not_stop_the_workers():
    """Their parent finishes its step, as it is asked to, and needs them for it."""
    results = fetch_ahead(lambda number: (number, os.getpid()), range(COUNT), workers=1, ahead=1)
    _, worker = next(results)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    assert [number for number, _ in results] == [1, 2, 3, 4, 5, 6]


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="-1 workers cannot load data"):
        fetch_ahead(abs, [1], -1)
