"""openpi's wire format: msgpack with NumPy arrays, and nothing that could run code or ask for memory that is not there.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [H, W, 3]}
    scalar   {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}

One connection: the server sends its metadata, then answers each binary request with one binary reply. An error goes
out as a text frame, and the connection closes with code 1011.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
"""Booleans, integers and floats. Everything else that NumPy has a code for is refused: objects are pickles."""
MAX_DIMS = 8
MAX_DEPTH = 8
MAX_ENTRIES = 4096
"""Of all maps and lists together; numbers in bulk are arrays. An empty list is 1 byte on the wire and 56 in memory."""
MAX_TEXT = 2**16
"""Bytes of one string."""
KINDS = "biuf"


class ProtocolError(ValueError):
    """A message that is not of this format; the text says what is wrong with it and what to send."""


def pack(message: Any) -> bytes:
    """A message as openpi's client packs it.

    Raises:
        ProtocolError: a value that has no place in the format, for example an object array.
    """
    try:
        return msgpack.Packer(default=_pack_value).pack(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the message cannot be packed: {error}") from error


def unpack(data: bytes, *, max_entries: int = MAX_ENTRIES) -> Any:
    """The message in some bytes from anywhere. Arrays have memory of their own, in this machine's byte order.

    Raises:
        ProtocolError: damaged, too deep or with too many entries, with an entry twice, or with an array that is not
            what it says.
    """
    budget = _Budget(max_entries)
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=lambda pairs: _unpack_map(budget.spend(pairs)),
            list_hook=budget.spend,
            max_str_len=MAX_TEXT,
            max_bin_len=len(data),
            max_array_len=max_entries,
            max_map_len=max_entries,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # Cut: what was sent may be in the reason, however long it is.
        reason = f"{type(error).__name__} {error}".strip()[:200]
        raise ProtocolError(f"the message is not msgpack as openpi's client sends it ({reason})") from error
    _check_depth(message)
    return message


class _Budget:
    """Counts what a message unfolds to, while it does."""

    def __init__(self, entries: int):
        self._left = entries

    def spend(self, items: list) -> list:
        self._left -= 1 + len(items)
        if self._left < 0:
            raise ProtocolError("the message has too many entries; send numbers as NumPy arrays")
        return items


def _pack_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in KINDS:
        raise ProtocolError(f"dtype {value.dtype} cannot be sent: send booleans, integers or floats")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    raise ProtocolError(f"a {type(value).__name__} cannot be sent: send NumPy arrays, numbers, text or maps of them")


def _unpack_map(pairs: list[tuple[Any, Any]]) -> Any:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ProtocolError("a map of the message has an entry twice")
    if ARRAY in result:
        return _unpack_array(result)
    if SCALAR in result:
        return _unpack_scalar(result)
    return result


def _unpack_array(fields: Mapping[Any, Any]) -> np.ndarray:
    if fields.keys() != {ARRAY, DATA, DTYPE, SHAPE}:
        raise ProtocolError("an array needs exactly __ndarray__, data, dtype and shape")
    dtype, shape, data = _dtype(fields[DTYPE]), fields[SHAPE], fields[DATA]
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise ProtocolError(f"an array's shape is a list of at most {MAX_DIMS} sizes, got {str(shape)[:80]}")
    size = math.prod(shape) * dtype.itemsize  # Python's integers: a product that overflows would pass
    if not isinstance(data, bytes) or len(data) != size:
        given = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ProtocolError(f"an array of {dtype} {shape} has {size} bytes, the message holds {given}")
    if dtype.kind == "b":  # a byte other than 0 and 1 is no bool
        return np.frombuffer(data, np.uint8).reshape(shape) != 0
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=True)


def _unpack_scalar(fields: Mapping[Any, Any]) -> np.generic:
    if fields.keys() != {SCALAR, DATA, DTYPE}:
        raise ProtocolError("a scalar needs exactly __npgeneric__, data and dtype")
    dtype, value = _dtype(fields[DTYPE]), fields[DATA]
    if type(value) not in (bool, int, float):
        raise ProtocolError(f"a scalar of {dtype} holds a number, got {type(value).__name__}")
    if dtype.kind in "iu" and not (type(value) is int and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
        raise ProtocolError(f"{value!r} is no {dtype}")
    with np.errstate(over="ignore"):  # a float that is too large is infinite, and validation says where
        return dtype.newbyteorder("=").type(value)


def _dtype(text: Any) -> np.dtype:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ProtocolError(
            f"dtype {str(text)[:40]!r} is refused: send booleans, integers or floats of up to 8 bytes, as in '<f4' or "
            "'|u1' (objects and pickles are never read)"
        )
    return np.dtype(text)


def _check_depth(message: Any) -> None:
    """Looks level by level, so that a deep message costs no recursion."""
    level = [message]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ProtocolError(f"the message is nested more than {MAX_DEPTH} deep; send a flat map")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
