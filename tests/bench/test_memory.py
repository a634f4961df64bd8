"""The peak is that of the work, and what was there before is forgotten."""

import mmap

import pytest

from selfalign.bench import memory
from selfalign.bench.memory import PeakMemory

BLOCK = 64_000_000


def test_the_peak_of_a_piece_of_work():
    work = PeakMemory()
    if not work.forgotten:
        pytest.skip("this system does not forget peaks")
    idle = work.megabytes
    with mmap.mmap(-1, BLOCK) as block:  # an array's memory may come from the heap, which keeps it
        for page in range(0, BLOCK, mmap.PAGESIZE):
            block[page] = 1
    peak = work.megabytes
    assert peak - idle == pytest.approx(BLOCK / 1e6, rel=0.2), "it stays when the memory is given back"
    assert PeakMemory().megabytes < peak - BLOCK / 2e6, "and is forgotten when the next piece of work begins"


def test_where_peaks_are_not_forgotten_it_is_that_of_the_whole_life(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "clear_refs")
    peak = PeakMemory()
    assert not peak.forgotten and peak.megabytes > 20
