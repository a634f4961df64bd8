"""Records survive a kill at any byte, damage and a full disk; a ring keeps the newest within its bytes."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest

from online.crash import killed_after_bytes
from selfalign.online.records import MAGIC, RecordFile, read_records
from selfalign.online.ring import Ring, Snapshot

PAYLOADS = [bytes([65 + i]) * (3 * i) for i in range(8)]


def written(path, payloads=PAYLOADS) -> bytes:
    file = RecordFile(path)
    for payload in payloads:
        file.append(payload)
    file.close()
    return path.read_bytes()


def numbered(number: int) -> bytes:
    """A record that says which it is; sizes differ."""
    return b"%06d" % number + bytes(number % 37)


def test_the_format_is_as_it_is_told(tmp_path):
    expected = b"SALOG001"
    for payload in PAYLOADS:
        length = struct.pack("<I", len(payload))
        expected += length + struct.pack("<I", zlib.crc32(length + payload)) + payload
    assert written(tmp_path / "log") == expected
    assert list(read_records(tmp_path / "log")) == PAYLOADS


def test_a_file_cut_at_any_byte_keeps_every_record_before_the_cut(tmp_path):
    data = written(tmp_path / "whole")
    ends = np.cumsum([len(MAGIC)] + [8 + len(payload) for payload in PAYLOADS])
    for cut in range(len(data) + 1):
        path = tmp_path / "cut"
        path.write_bytes(data[:cut])
        kept = int((ends[1:] <= cut).sum())
        file = RecordFile(path)
        assert file.records == kept
        file.append(b"the next one")
        file.close()
        assert list(read_records(path)) == [*PAYLOADS[:kept], b"the next one"]


def test_no_damaged_byte_goes_unseen(tmp_path):
    data, path = written(tmp_path / "whole"), tmp_path / "damaged"
    for place in range(len(MAGIC), len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        found = list(read_records(path))
        assert len(found) < len(PAYLOADS) and found == PAYLOADS[: len(found)]
    path.write_bytes(data + bytes(64))  # zeros, as a lost power leaves them
    assert list(read_records(path)) == PAYLOADS


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes"
    path.write_bytes(b"something else entirely")
    with pytest.raises(ValueError, match="no file of records"):
        RecordFile(path)
    with pytest.raises(ValueError, match="no file of records"):
        list(read_records(path))
    assert path.read_bytes() == b"something else entirely"


def test_killed_at_100_random_bytes_only_the_last_record_is_lost(tmp_path):
    rng, total = np.random.default_rng(0), 60
    whole = Ring(tmp_path / "whole", 16_000)
    for number in range(total):
        whole.append(numbered(number))
    assert whole.start == 0, "nothing may be dropped here"
    bytes_written = whole.size
    for run, count in enumerate(rng.integers(1, bytes_written, 100)):
        folder = tmp_path / str(run)

        def work(folder=folder):
            ring = Ring(folder, 16_000)
            for number in range(total):
                ring.append(numbered(number))

        assert not killed_after_bytes(int(count), work)
        on_disk = sum(path.stat().st_size for path in folder.glob("*.log"))
        assert on_disk == count
        ring = Ring(folder, 16_000)
        records = list(ring.snapshot().records())
        assert records == [(n, numbered(n)) for n in range(len(records))]
        lost = count - ring.size
        assert lost < 8 + len(numbered(len(records))), "more than the record that was being written"
        assert ring.append(numbered(len(records))) == len(records)
        ring.close()


def test_the_ring_keeps_the_newest_within_its_bytes(tmp_path):
    ring = Ring(tmp_path / "ring", 2000)
    for number in range(500):
        assert ring.append(numbered(number)) == number
        assert sum(path.stat().st_size for path in (tmp_path / "ring").iterdir()) == ring.size <= 2000
        kept = [n for n, _ in ring.snapshot().records()]
        assert kept == list(range(ring.start, number + 1))
    assert ring.size > 1500, "most of the room is used"
    ring.close()
    again = Ring(tmp_path / "ring", 2000)
    assert (again.start, again.end) == (ring.start, 500)
    assert list(again.snapshot().records(490)) == [(n, numbered(n)) for n in range(490, 500)]
    smaller = Ring(tmp_path / "ring", 1000)
    smaller.append(numbered(500))
    assert smaller.size <= 1000 and smaller.end == 501


def test_a_snapshot_stays_what_it_was(tmp_path):
    ring = Ring(tmp_path, 2000)
    for number in range(20):
        ring.append(numbered(number))
    snapshot = Snapshot.from_list(ring.snapshot().to_list())
    ring.append(numbered(20))
    assert [n for n, _ in snapshot.records()] == list(range(20))
    for number in range(21, 100):
        ring.append(numbered(number))
    assert [n for n, _ in snapshot.records()] == list(range(ring.start, 20)), "what was dropped is not there"


def test_a_damaged_segment_costs_its_own_records_only(tmp_path, caplog):
    ring = Ring(tmp_path, 2000)
    for number in range(50):
        ring.append(numbered(number))
    ring.close()
    first, second, *_ = sorted(tmp_path.glob("*.log"))
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    found = [n for n, _ in Ring(tmp_path, 2000).snapshot().records()]
    end = int(sorted(tmp_path.glob("*.log"))[2].stem)
    assert set(range(int(first.stem), int(second.stem) + 1)) < set(found) and set(range(end, 50)) < set(found)
    assert f"{second} is damaged: records" in caplog.text


def test_a_full_disk_changes_nothing_and_is_over_when_there_is_room(tmp_path, monkeypatch):
    ring = Ring(tmp_path, 2000)
    for number in range(5):
        ring.append(numbered(number))
    before, real = ring.size, os.pwrite

    def full(handle, data, place):
        real(handle, data[:5], place)  # some bytes still fit
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                ring.append(numbered(5))
    assert ring.size == before == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert ring.append(numbered(5)) == 5
    assert [payload for _, payload in ring.snapshot().records()] == [numbered(n) for n in range(6)]


def test_what_can_never_fit_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no room for records"):
        Ring(tmp_path / "small", 100)
    with pytest.raises(ValueError, match="a record of 1008 bytes is too large for a ring of 2000"):
        Ring(tmp_path / "ring", 2000).append(bytes(1000))


def test_a_newest_file_of_another_kind_is_set_aside(tmp_path):
    ring = Ring(tmp_path, 2000)
    for number in range(50):
        ring.append(numbered(number))
    newest = sorted(tmp_path.glob("*.log"))[-1]
    newest.write_bytes(bytes(200))  # zeros, as a lost power may leave a file that was never flushed
    again = Ring(tmp_path, 2000)
    assert again.end == int(newest.stem)
    assert again.append(b"goes on") == int(newest.stem)
    assert newest.with_suffix(".damaged").read_bytes() == bytes(200)
