"""Versions of a context: what is in use after anything that can happen, and the way back, bit for bit."""

import errno
import os

import numpy as np
import pytest

from full_disk import no_room
from online.contexts import make_context, value
from online.crash import killed_after_lines, killed_beyond
from selfalign.online.versions import ACCEPTED, GIVEN, RECOVERED, REJECTED, ROLLED_BACK, ContextVersions


def open_versions(folder, **changes) -> ContextVersions:
    return ContextVersions(folder, "arm", **{"fingerprint": "abc"} | changes)


def test_the_journal_tells_who_did_what_and_when(tmp_path):
    versions = open_versions(tmp_path)
    assert versions.current == 0 and versions.previous is None
    assert value(versions.adopt(make_context(0.1))) == 0.1
    versions.note(REJECTED, by="drift", why="not better")
    assert versions.accept(make_context(0.2), by="drift", verdict={"before": 0.5}) == 2
    assert value(versions.rollback(by="operator")) == 0.1
    versions.close()
    again = open_versions(tmp_path)
    assert [(e.kind, e.version) for e in again.events] == [(GIVEN, 1), (REJECTED, 1), (ACCEPTED, 2), (ROLLED_BACK, 1)]
    assert again.events[2].about == {"by": "drift", "verdict": {"before": 0.5}}
    assert again.events[3].about == {"left": 2, "by": "operator"}
    times = [event.time for event in again.events]
    assert times == sorted(times)
    assert value(again.load()) == 0.1 and value(again.load(2)) == 0.2


def test_the_way_back_leaves_out_what_was_rolled_back(tmp_path):
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    versions.accept(make_context(0.2))
    versions.accept(make_context(0.3))
    assert value(versions.rollback()) == 0.2
    assert versions.accept(make_context(0.4)) == 4
    assert value(versions.rollback()) == 0.2, "not 3, which was left"
    assert value(versions.rollback()) == 0.1
    with pytest.raises(ValueError, match="version 1 is the first of 'arm'"):
        versions.rollback()
    assert value(versions.rollback(4)) == 0.4, "any version by its number"
    assert versions.previous == 1
    with pytest.raises(LookupError, match="no version 9"):
        versions.rollback(9)
    assert versions.current == 4


def test_what_is_in_use_stays_so_until_another_context_is_given(tmp_path):
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    versions.accept(make_context(0.2))
    assert value(open_versions(tmp_path).adopt(make_context(0.1))) == 0.2
    again = open_versions(tmp_path)
    assert value(again.adopt(make_context(0.7))) == 0.7
    assert again.current == 3 and value(again.rollback()) == 0.2
    assert value(open_versions(tmp_path).adopt(make_context(0.7))) == 0.2, "given before, and rolled back since"


def test_versions_of_another_model_are_not_used(tmp_path):
    first = open_versions(tmp_path)
    first.adopt(make_context(0.1))
    first.accept(make_context(0.2))
    other = open_versions(tmp_path, fingerprint="xyz")
    assert value(other.adopt(make_context(0.1, "xyz"))) == 0.1
    assert other.current == 3 and other.previous is None
    with pytest.raises(ValueError, match="fitted to model abc, but this model is xyz"):
        other.rollback(2)
    assert other.current == 3
    with pytest.raises(ValueError, match="nothing to roll back to"):
        other.rollback()


def test_a_damaged_version_gives_way_to_the_one_before(tmp_path):
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    versions.accept(make_context(0.2))
    path = versions.path(versions.accept(make_context(0.3)))
    path.write_bytes(path.read_bytes()[:-4])
    again = open_versions(tmp_path)
    assert value(again.adopt(make_context(0.1))) == 0.2
    assert again.current == 2 and "not a whole safetensors file" in again.events[-1].about["why"]
    for number in (1, 2):
        again.path(number).write_bytes(b"")
    assert value(open_versions(tmp_path).adopt(make_context(0.1))) == 0.1, "the given one is still there"


def test_a_damaged_pointer_is_mended_from_the_journal(tmp_path):
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    versions.accept(make_context(0.2))
    versions.accept(make_context(0.3))
    versions.rollback()
    (versions.folder / "current").write_text("x")
    again = open_versions(tmp_path)
    assert again.current == 2 and again.events[-1].kind == RECOVERED


def test_old_versions_go_but_none_that_is_needed(tmp_path):
    versions = open_versions(tmp_path, keep=4)
    versions.adopt(make_context(0.1))
    for number in range(2, 9):
        versions.accept(make_context(number / 10))
    assert versions.numbers == [1, 6, 7, 8], "the given one stays"
    versions.rollback(1)
    assert value(versions.load()) == 0.1
    assert versions.accept(make_context(0.9)) == 9
    assert {1, 9} <= set(versions.numbers) and len(versions.numbers) == 4


def test_a_full_disk_leaves_what_is_in_use(tmp_path, monkeypatch):
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    files = sorted(versions.folder.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="was not saved, what was stored is unchanged"):
            versions.accept(make_context(0.2))
    with no_room(beyond=100), pytest.raises(OSError, match=r"was not saved, what was stored is unchanged: File too"):
        versions.accept(make_context(0.2))
    assert versions.current == 1 and len(versions.events) == 1 and sorted(versions.folder.iterdir()) == files
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        versions.note(REJECTED, why="no room for this line")
    assert versions.accept(make_context(0.3)) == 2
    again = open_versions(tmp_path)
    assert value(again.load()) == 0.3
    assert [event.kind for event in again.events] == [GIVEN, ACCEPTED], "the lost line is the only loss"


@pytest.mark.parametrize("change", ["accept", "rollback"])
def test_killed_at_100_random_points_of_a_change_it_is_done_or_not(tmp_path, change):
    """Killed before any line of Python of a save, a swap or a rollback: one of the two contexts is in use, bit for bit,
    and work goes on."""
    rng = np.random.default_rng(0)
    before, after = (0.2, 0.3) if change == "accept" else (0.2, 0.1)

    def prepared(folder):
        versions = open_versions(folder)
        versions.adopt(make_context(0.1))
        versions.accept(make_context(0.2))
        return versions

    def work(versions):
        versions.accept(make_context(0.3)) if change == "accept" else versions.rollback()

    def killed(folder, lines: int) -> tuple[ContextVersions, bool]:
        versions = prepared(folder)
        finished = killed_after_lines(lines, lambda: work(versions))
        versions.close()
        return versions, finished

    lines = 100
    while not killed(tmp_path / f"length-{lines}", lines)[1]:
        lines = round(1.3 * lines)
    outcomes = set()
    for run, point in enumerate(rng.integers(1, lines, 100)):
        folder = tmp_path / str(run)
        _, finished = killed(folder, int(point))
        again = open_versions(folder)
        found = value(again.adopt(make_context(0.1)))
        assert found in ((after,) if finished else (before, after))
        assert again.events[-1].version == again.current and not list(again.folder.glob(".*"))
        assert value(again.load(1)) == 0.1 and value(again.load(2)) == 0.2, "nothing else is touched"
        again.accept(make_context(0.5))
        assert value(open_versions(folder).load()) == 0.5
        outcomes.add(found if not finished else "finished")
    assert {before, after} <= outcomes, "the points must lie on both sides of the swap"


def test_killed_at_100_random_bytes_of_a_context_the_old_one_is_in_use(tmp_path):
    """Killed by the system in the middle of a write, whichever code does it."""
    versions = open_versions(tmp_path)
    versions.adopt(make_context(0.1))
    versions.accept(make_context(0.2))
    files = {path: path.read_bytes() for path in versions.folder.iterdir()}
    written = versions.path(2).stat().st_size
    for size in np.random.default_rng(0).integers(0, written, 100):
        assert not killed_beyond(int(size), lambda: versions.accept(make_context(0.3)))
        (torn,) = (path for path in versions.folder.iterdir() if path not in files)
        assert torn.stat().st_size == size
        again = open_versions(tmp_path)
        assert value(again.adopt(make_context(0.1))) == 0.2
        again.close()
        assert {path: path.read_bytes() for path in versions.folder.iterdir()} == files
    assert killed_beyond(10 * written, lambda: versions.accept(make_context(0.3)))
    assert value(open_versions(tmp_path).load()) == 0.3


def test_the_version_before_the_one_in_use_stays_however_old_it_is(tmp_path):
    versions = open_versions(tmp_path, keep=4)
    for number in range(1, 9):
        (versions.accept if number > 1 else versions.adopt)(make_context(number / 10))
    versions.rollback(6)
    for number in (9, 10):
        versions.accept(make_context(number / 10))
        assert versions.previous == 6 and len(versions.numbers) == 4
        versions.rollback()
        assert versions.current == 6 and value(versions.load()) == 0.6
