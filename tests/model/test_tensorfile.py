"""safetensors files in pieces, against the safetensors package in both directions."""

import json
import struct
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfalign.model import tensorfile
from selfalign.model.tensorfile import StoredTensor, open_tensors, write_tensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    drawn = {f"x{i}": torch.randn(shape, generator=generator) for i, shape in enumerate([(), (3,), (5, 7), (0, 4)])}
    return {
        **drawn,
        "half": drawn["x2"].bfloat16(),
        "wide": drawn["x2"].double(),
        "flags": drawn["x2"] > 0,
        "count": torch.tensor([1, 2, 3]),
        "turned": drawn["x2"].T,
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("chunk", [3, 16, 1 << 24])
def test_files_are_those_of_the_safetensors_package(tensors, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tensorfile, "CHUNK", chunk)
    write_tensors(tmp_path / "ours", {name: StoredTensor.of(t) for name, t in tensors.items()})
    theirs = load_file(tmp_path / "ours")
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs")
    with open_tensors(tmp_path / "theirs") as file:
        ours = {name: stored.tensor() for name, stored in file.items()}
    for name, tensor in tensors.items():
        for found in (theirs[name], ours[name]):
            assert (found.dtype, found.shape, bits(found)) == (tensor.dtype, tensor.shape, bits(tensor)), name
    with safe_open(tmp_path / "ours", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_copy_holds_a_chunk_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "CHUNK", 1 << 18)
    write_tensors(tmp_path / "large", {name: StoredTensor.zeros((1 << 21,), torch.float32) for name in "abc"})
    with open_tensors(tmp_path / "large") as file:
        tracemalloc.start()
        write_tensors(tmp_path / "copy", file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "copy").stat().st_size > 24 << 20
    assert peak < 4 << 18


def test_types_are_converted_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(tensorfile, "CHUNK", 8)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(StoredTensor.of(x).to(torch.float32).tensor(), x.float())


def test_equal_means_type_shape_and_bits():
    x = torch.arange(6.0)
    stored = StoredTensor.of(x)
    assert stored.same_bytes(StoredTensor.of(x.clone()))
    for other in (x.reshape(2, 3), x.double(), torch.cat([x[:5], x[:1]])):
        assert not stored.same_bytes(StoredTensor.of(other))


def write_raw(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"a": entry(0, 8)}, bytes(7), "bytes were expected"),
        ({"a": entry(0, 8)}, bytes(9), "bytes were expected"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), "bytes of b are not where"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "bytes of b are not where"),
        ({"a": entry(0, 12)}, bytes(12), "bytes of a are not where"),
        ({"a": entry(0, 8, dtype="F12")}, bytes(8), "header is damaged"),
        ({"a": {"dtype": "F32"}}, b"", "header is damaged"),
        ({"a": entry(0, -8, shape=(-2,))}, b"", "header is damaged"),
        ([1], b"", "header is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, header, data, why):
    write_raw(tmp_path / "file", header, data)
    with (
        pytest.raises(ValueError, match=rf"truncated or not safetensors \(.*{why}.*\); copy"),
        open_tensors(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("data", [b"", b"PK", b"\xff" * 64, struct.pack("<Q", 50) + b"{}"])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match="have no header"), open_tensors(tmp_path / "file"):
        pass


def test_a_tensor_that_gives_too_few_bytes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a has 4 bytes instead of 8"):
        write_tensors(tmp_path / "file", {"a": StoredTensor(torch.float32, (2,), lambda: [bytes(4)])})
