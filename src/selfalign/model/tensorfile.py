"""safetensors files in pieces: a checkpoint larger than memory is read and written a few megabytes at a time.

A file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, byte range) and the
bytes of the tensors, without gaps. The files are those of the `safetensors` package; that package maps a file into
memory as a whole, so that a process which copies 14 GB appears to hold 14 GB.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Bytes that are in memory at once."""
LONGEST_HEADER = 100_000_000

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is needed, from a file or from memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]
    """Its bytes in order, at most `CHUNK` (or one number) at a time."""

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """A tensor in memory; its bytes are copied piece by piece."""

        def chunks() -> Iterator[bytes]:
            flat = tensor.detach().reshape(-1)
            step = max(1, CHUNK // flat.element_size())
            for start in range(0, flat.numel(), step):
                yield flat[start : start + step].cpu().contiguous().view(torch.uint8).numpy().tobytes()

        return cls(tensor.dtype, tuple(tensor.shape), chunks)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: torch.dtype) -> "StoredTensor":
        """Zeros that take no memory."""
        size = math.prod(shape) * dtype.itemsize
        return cls(dtype, shape, lambda: (bytes(min(CHUNK, size - start)) for start in range(0, size, CHUNK)))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """All of it in memory."""
        result = torch.empty(self.shape, dtype=self.dtype)
        flat, start = result.reshape(-1).view(torch.uint8), 0
        for chunk in self.chunks():
            flat[start : start + len(chunk)] = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
            start += len(chunk)
        return result

    def to(self, dtype: torch.dtype) -> "StoredTensor":
        """The same numbers in another type, converted chunk by chunk."""
        if dtype == self.dtype:
            return self

        def chunks() -> Iterator[bytes]:
            for chunk in self.chunks():
                yield from StoredTensor.of(torch.frombuffer(bytearray(chunk), dtype=self.dtype).to(dtype)).chunks()

        return StoredTensor(dtype, self.shape, chunks)

    def same_bytes(self, other: "StoredTensor") -> bool:
        """Whether type, shape and every bit are equal."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(a == b for a, b in zip(self.chunks(), other.chunks()))


@contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a safetensors file by name; none is read before its `tensor` or `chunks` is called.

    Raises:
        ValueError: the file is truncated, or no safetensors file.
    """
    with path.open("rb") as file:
        try:
            yield _read_header(file)
        except _BadHeader as error:
            raise ValueError(f"{path} is truncated or not safetensors ({error}); copy or download it again") from error


class _BadHeader(ValueError):
    """Why a file is not a safetensors file."""


def _read_header(file: BinaryIO) -> dict[str, StoredTensor]:
    size = os.fstat(file.fileno()).st_size
    length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
    if not 2 <= length <= min(size - 8, LONGEST_HEADER):
        raise _BadHeader(f"its {size:,} bytes have no header")
    try:
        header = json.loads(file.read(length))
        entries = {name: _Entry.read(item) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _BadHeader(f"its header is damaged: {error!r}") from error
    start, end = 8 + length, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end or entry.end - entry.begin != entry.num_bytes:
            raise _BadHeader(f"the bytes of {name} are not where they should be")
        end = entry.end
    if start + end != size:
        raise _BadHeader(f"{start + end:,} bytes were expected, there are {size:,}")
    return {name: entry.stored(file, start) for name, entry in entries.items()}


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes after the header."""

    @classmethod
    def read(cls, item: Mapping[str, Any]) -> "_Entry":
        begin, end = item["data_offsets"]
        shape = tuple(map(int, item["shape"]))
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {shape}")
        return cls(DTYPES[item["dtype"]], shape, int(begin), int(end))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def stored(self, file: BinaryIO, offset: int) -> StoredTensor:
        def chunks() -> Iterator[bytes]:
            for start in range(self.begin, self.end, CHUNK):
                file.seek(offset + start)
                wanted = min(CHUNK, self.end - start)
                chunk = file.read(wanted)
                if len(chunk) != wanted:
                    raise ValueError(f"{file.name} became shorter while it was read")
                yield chunk

        return StoredTensor(self.dtype, self.shape, chunks)


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a safetensors file, chunk by chunk; largest numbers first, so that every tensor is aligned.

    Raises:
        ValueError: a tensor gives more or fewer bytes than its shape says.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            written = sum(file.write(chunk) for chunk in tensors[name].chunks())
            if written != tensors[name].num_bytes:
                raise ValueError(f"{name} has {written:,} bytes instead of {tensors[name].num_bytes:,}")
