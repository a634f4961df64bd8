import math
import os
import threading

import pytest

from selfalign.workers import count_one, run_jobs, track


def collect(job, jobs, workers: int) -> dict:
    results = {}
    run_jobs(job, jobs, workers, on_done=lambda item, result: results.update({item: result}))
    return results


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_and_reported(workers: int):
    assert collect(math.factorial, [1, 3, 5], workers) == {1: 1, 3: 6, 5: 120}


def test_workers_have_one_thread_and_leave_no_trace_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    found = collect(os.getenv, ["OMP_NUM_THREADS", "LP_NUM_THREADS"], 2)
    assert found == {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "LP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised_here(workers: int):
    with pytest.raises(ValueError, match="factorial"):
        collect(math.factorial, [1, -1], workers)


def test_a_worker_that_dies_is_told():
    with pytest.raises(RuntimeError, match="fewer workers"):
        collect(os._exit, [1, 2], 2)


def count_to(number: int) -> None:
    for _ in range(number):
        count_one()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_jobs_count_arrives_here(workers: int):
    told = []
    run_jobs(count_to, [3, 4], workers, on_count=told.append)
    assert told == sorted(told) and told[-1] == 7
    count_one()  # nobody listens any more
    assert told[-1] == 7


def test_a_tracked_loop_gives_every_item_and_shows_how_many(capsys: pytest.CaptureFixture):
    assert list(track(iter("abc"), "reading", total=3)) == ["a", "b", "c"]
    told = capsys.readouterr().out
    assert "reading" in told and "100%" in told
    assert list(track(range(4), "counting")) == [0, 1, 2, 3]


def test_a_tracked_loop_that_is_abandoned_leaves_no_thread():
    before = threading.active_count()
    loop = track(range(3), "stopping")
    next(loop)
    assert threading.active_count() == before, "one that is collected in another's thread could wait for it for ever"
    other = threading.Thread(target=loop.close)  # as when Python collects it there
    other.start()
    other.join(10)
    assert not other.is_alive()
