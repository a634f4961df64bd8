"""Files are whole or as they were, and the room of a memory map is taken before anything is written into it."""

import errno
import stat

import numpy as np
import pytest
import torch

from full_disk import no_room
from selfalign.model.context import EmbodimentContext
from selfalign.model.files import map_array, umask, write_atomically


def save_array(path, values):
    with path.open("wb") as file:
        np.save(file, values)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(9000)),
        lambda path: save_array(path, np.zeros(9000)),
        lambda path: torch.save(torch.zeros(9000), path),
    ],
    ids=["bytes", "numpy", "torch"],
)
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(OSError, match=r"File too large|file could not be written \(is the disk full\?\)"),
        no_room(4096),
    ):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"
    write_atomically(path, write)
    assert path.stat().st_size >= 9000


def test_a_context_file_may_be_read_by_whom_other_files_may(tmp_path):
    context = EmbodimentContext((torch.zeros(2, 8, 8),), (torch.zeros(2, 1, 8),))
    path = context.save(tmp_path / "context.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    before = path.read_bytes()
    with pytest.raises(OSError) as caught, no_room(256):
        context.save(path)
    assert caught.value.errno == errno.EFBIG and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_room_of_a_mapped_array_is_taken_at_once(tmp_path):
    path, shape = tmp_path / "array.npy", (1000, 128)
    array = map_array(path, np.float32, shape)
    assert path.stat().st_blocks * 512 >= 4 * np.prod(shape)  # a file with holes has fewer
    array[:] = np.arange(128)
    array.flush()
    assert np.array_equal(np.load(path), np.broadcast_to(np.arange(128, dtype=np.float32), shape))


def test_a_mapped_array_without_room_is_an_error_and_no_file(tmp_path, monkeypatch):
    def full(handle, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*array\.npy"):
        map_array(tmp_path / "array.npy", np.float32, (4, 4))
    assert list(tmp_path.iterdir()) == []
