"""The wire format against frames that openpi's own client made, and against whatever else may come."""

import base64
import contextlib
import json
import random
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.serve.config import Limits
from selfalign.serve.protocol import MAX_ENTRIES, ProtocolError, pack, unpack
from selfalign.serve.requests import RequestError, RequestReader
from serve.openpi_talk import messages

FRAMES = {
    name: base64.b64decode(text)
    for name, text in json.loads((Path(__file__).parent / "openpi_frames.json").read_text()).items()
}

READER = RequestReader(Limits(), {}, learns=True)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.float64):  # a Python float to msgpack, openpi's too
        return type(b) is float and a == b
    if isinstance(a, np.ndarray | np.generic):
        little = a.dtype.newbyteorder("=")
        return type(a) is type(b) and b.dtype == little and a.shape == b.shape and np.array_equal(a, b)
    return a == b and type(a) is type(b)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_openpis_byte_for_byte(name):
    assert pack(messages()[name]) == FRAMES[name]


@pytest.mark.parametrize("name", FRAMES)
def test_openpis_frames_are_read(name):
    assert same(messages()[name], unpack(FRAMES[name]))


def test_arrays_are_the_readers_own():
    array = unpack(pack({"x": np.arange(3.0)}))["x"]
    array[0] = 7.0
    assert array.flags.writeable and array.flags.owndata


def array(data=b"\0" * 8, dtype="<f4", shape=(2,), **changes) -> bytes:
    fields = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape), **changes}
    return msgpack.packb({"x": fields})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (array(dtype="|O", data=b"\0" * 16), "objects and pickles are never read"),
        (array(dtype="O"), "objects and pickles are never read"),
        (array(dtype="|V8", shape=(1,)), "dtype '|V8' is refused"),
        (array(dtype="<U2", shape=(1,)), "is refused"),
        (array(dtype="<M8[s]", shape=(1,)), "is refused"),
        (array(dtype="<c8", shape=(1,)), "is refused"),
        (array(dtype="f4,f4", shape=(1,)), "is refused"),
        (array(dtype="(1000000000,)f4", shape=(1,)), "is refused"),
        (array(dtype="float32"), "is refused"),
        (array(dtype=b"<f4"), "is refused"),
        (array(dtype="<f4\n"), "is refused"),
        (array(shape=(3,)), r"\[3\] has 12 bytes, the message holds 8 bytes"),
        (array(shape=(-2,)), "shape is a list of at most"),
        (array(shape=(2.0,)), "shape is a list of at most"),
        (array(shape=(True, 2)), "shape is a list of at most"),
        (array(shape=(2**32, 2**32)), "shape is a list of at most"),
        (array(shape=(2**31 - 1,) * 8, data=b""), "the message holds 0 bytes"),
        (array(shape=(1,) * 9), "at most 8 sizes"),
        (array(data="text"), "the message holds str"),
        (array(more=1), "exactly __ndarray__, data, dtype and shape"),
        (msgpack.packb({"x": {b"__ndarray__": True}}), "exactly __ndarray__"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "300 is no uint8"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<i4"}}), "0.5 is no int32"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}), "holds a number, got str"),
        (msgpack.packb({"x": msgpack.ExtType(1, b"x")}), "not msgpack as openpi"),
        (b"", "not msgpack as openpi"),
        (b"\xc1", "not msgpack as openpi"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack as openpi"),
        (msgpack.packb({"x": 1}) + b"\0", "not msgpack as openpi"),
        (msgpack.packb({1: 2}), "not msgpack as openpi"),
        (b"\xa2\xff\xfe", "not msgpack as openpi"),
        (b"\x82\xa1x\x01\xa1x\x02", "an entry twice"),
        (msgpack.packb([[0] * 1000] * 5), "too many entries"),
        (b"\xdd\x00\x00\x10\x00" + b"\x90" * 4096, "too many entries"),
        (b"\x91" * 20 + b"\xc0", "nested more than 8 deep"),
        (b"\x91" * 1_000_000, "not msgpack|nested|too many"),
        (b"\x91" * 3_000 + b"\xc0", "not msgpack|nested|too many"),
    ],
)
def test_what_is_not_of_the_format_is_refused(frame, message):
    with pytest.raises(ProtocolError, match=message) as error:
        unpack(frame)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "value", [np.array([None, 1]), np.array([1j]), np.array(["text"]), object(), {1, 2}, 2**70, np.datetime64("2026")]
)
def test_what_has_no_place_in_the_format_is_not_sent(value):
    with pytest.raises(ProtocolError, match=r"cannot be (sent|packed)"):
        pack({"x": value})


def test_few_bytes_cannot_ask_for_much_memory():
    """The worst bytes for each structure: refused before they unfold."""
    import tracemalloc

    tracemalloc.start()
    for frame in (b"\xdd\x00\xff\xff\xff" + b"\x90" * 2**20, b"\xdd\x00\x00\x0f\xff" + b"\x80" * 2**20):
        with pytest.raises(ProtocolError):
            unpack(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 600 * MAX_ENTRIES


# ---- whatever else may come ----------------------------------------------------------------------------------------

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=16)
)
names = ["task", "observation.state", "observation.images.scene", "embodiment", "reset", "seed", "executed"]
keys = st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", *names]) | st.text(max_size=4)
dtypes = st.sampled_from(["<f4", "|u1", ">i8", "|b1", "|O", "<f2", "V8", "f4,f4", "<U1", "<c16", ""])
arrays = st.fixed_dictionaries(
    {b"__ndarray__": st.just(True), b"data": st.binary(max_size=16) | leaves, b"dtype": dtypes | leaves},
    optional={b"shape": st.lists(st.integers(-1, 2**33) | st.integers(0, 4) | leaves, max_size=10), b"x": leaves},
)
scalars = st.fixed_dictionaries({b"__npgeneric__": st.just(True), b"data": leaves, b"dtype": dtypes | leaves})
trees = st.recursive(
    leaves | arrays | scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def frames(draw) -> bytes:
    """Noise, msgpack of anything, and openpi's frames with some bytes changed, cut or doubled."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(st.binary(max_size=64))
    if kind == 1:
        return msgpack.packb(draw(trees))
    frame = bytearray(draw(st.sampled_from(sorted(FRAMES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(frame) - 1))
        frame[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not frame:
            break
    return bytes(frame)


def readable_or_refused(frame: bytes) -> bool:
    """Either a message of plain values and safe arrays, which comes back from its own frame and is a request or earns
    `RequestError` (True), or `ProtocolError` (False)."""
    try:
        message = unpack(frame)
    except ProtocolError as error:
        assert len(str(error)) < 500
        return False
    level = [message]
    while level:
        for value in level:
            assert isinstance(value, dict | list | np.ndarray | np.generic | str | bytes | int | float | None)
            if isinstance(value, np.ndarray | np.generic):
                assert value.dtype.kind in "biuf" and value.dtype.isnative and value.nbytes <= max(16, len(frame))
        level = [c for v in level if isinstance(v, dict | list) for c in (v.values() if isinstance(v, dict) else v)]
    assert pack(unpack(pack(message))) == pack(message)
    with contextlib.suppress(RequestError):
        READER.read(message)
    return True


def test_frames_with_changed_bytes_are_read_or_refused():
    """Twenty thousand of them, without hypothesis: it looks closer and takes a hundred times as long."""
    rng, originals, refused = random.Random(0), sorted(FRAMES.values()), 0
    for _ in range(20_000):
        frame = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(frame))
            frame[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        refused += not readable_or_refused(bytes(frame))
    assert 5_000 < refused < 19_000, "the changes should break many frames and leave some readable"


@settings(max_examples=300, deadline=None)
@given(frames())
def test_any_bytes_are_read_or_refused(frame):
    readable_or_refused(frame)


@pytest.mark.slow
@settings(max_examples=25_000, deadline=None)
@given(frames())
def test_any_of_many_bytes_are_read_or_refused(frame):
    readable_or_refused(frame)
