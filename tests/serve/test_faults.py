"""What goes wrong on the wire: the one who did it is told, and the others are served as before."""

import contextlib
import os
import re
import resource
import socket
import struct
import time
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import connect

from align.factory import small_policy
from selfalign.serve.client import Client
from selfalign.serve.config import Limits, ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.protocol import pack
from selfalign.serve.server import in_background
from serve.serving import observation, robot_context, write_contexts

HANDSHAKE = (
    "GET /?embodiment=slow HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMITS = Limits(message_mb=1.0, ping_interval=0.5, handshake_timeout=1.0, request_timeout=5.0)


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    folder = write_contexts(policy, tmp_path_factory.mktemp("contexts"))
    robot_context(small_policy(1), "foreign").save(folder / "foreign.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(policy, folder):
    config = ServeConfig(port=0, num_steps=1, max_wait_ms=1, limits=LIMITS)
    with in_background(policy, ContextTable(policy, folder), config) as server:
        yield server


@pytest.fixture(autouse=True)
def others_are_served(server):
    """Before and after each fault, on a connection that stays open, and on a new one; no connection is left over."""
    with Client(server.address, embodiment="fast") as client:
        client.infer(observation())
        yield
        assert client.infer(observation())["actions"].shape == (4, 3)
    with Client(server.address, embodiment="slow") as client:
        assert client.infer(observation())["actions"].shape == (4, 3)
    end = time.monotonic() + 10
    while server._open and time.monotonic() < end:
        time.sleep(0.02)
    assert not server._open


def tcp(server) -> socket.socket:
    address = urlsplit(server.address)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def handshaken(server) -> socket.socket:
    """A bare socket that has become a WebSocket and has read the metadata."""
    raw = tcp(server)
    raw.sendall(HANDSHAKE.format(host="127.0.0.1").encode())
    received = b""
    while b"image_size" not in received:
        received += raw.recv(4096)
    return raw


def frame_header(size: int, opcode: int = 2) -> bytes:
    return bytes([0x80 | opcode, 0x80 | 127]) + struct.pack(">Q", size) + b"\0\0\0\0"


def until_closed(raw: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := raw.recv(4096):
            received += chunk
    return received


def told(server, message: bytes | str, path: str = "/?embodiment=slow") -> str:
    """The words that a message earns, which must be the last ones."""
    with connect(server.address + path, compression=None, max_size=None) as client:
        client.recv()
        client.send(message)
        words = client.recv()
        with pytest.raises(ConnectionClosedError) as error:
            client.recv()
    assert error.value.rcvd is not None and error.value.rcvd.code == 1011
    assert isinstance(words, str)
    return words


def test_a_client_that_leaves_in_the_middle_of_a_message(server):
    data = pack(observation())
    for cut in (0, 1, 5, len(data) // 2, len(data) - 1):
        raw = handshaken(server)
        raw.sendall((frame_header(len(data)) + data)[: 14 + cut])
        raw.close()


def test_a_client_that_resets_its_connection_while_it_is_answered(server):
    for _ in range(3):
        raw = handshaken(server)
        data = pack(observation())
        raw.sendall(frame_header(len(data)) + data)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()


def flood(raw: socket.socket, first: bytes, more: bytes) -> tuple[bytes, int]:
    """(what the server said to the first bytes, by how many bytes this process grew while up to 1 GB followed)."""
    raw.sendall(first)
    said, before = raw.recv(4096), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ConnectionError, TimeoutError):
        for _ in range(2**30 // len(more)):
            raw.sendall(more)
    raw.close()
    return said, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_a_gigabyte_is_refused_before_it_is_read(server):
    said, grown = flood(handshaken(server), frame_header(2**30), b"\0" * 2**20)
    assert said[0] == 0x88 and struct.unpack(">H", said[2:4]) == (1009,)
    assert grown < 64 * 2**20


def test_a_gigabyte_in_small_fragments_is_refused_too(server):
    size = 2**15
    head = b"\x80" + b"\xfe" + struct.pack(">H", size) + b"\0\0\0\0" + b"\0" * size
    start, follow = b"\x02" + head[1:], b"\x00" + head[1:]
    said, grown = flood(handshaken(server), start + follow * 40, follow)
    assert said[0] == 0x88 and struct.unpack(">H", said[2:4]) == (1009,)
    assert grown < 64 * 2**20


def test_a_message_just_too_large_closes_with_1009(server):
    with connect(server.address, compression=None) as client:
        client.recv()
        with pytest.raises(ConnectionClosed) as error:
            client.send(b"\0" * (2**20 + 1))
            client.recv()
    assert error.value.rcvd is not None and error.value.rcvd.code == 1009


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "not msgpack"),
        (os.urandom(1000) + b"\xc1", "not msgpack|is a map with text keys|has unknown|too many entries|twice|exactly"),
        (b"\x91" * 100_000, "not msgpack|nested|too many"),
        ("text", "requests are binary frames of msgpack, this was a text frame"),
        (b"\x80\x04\x95pickle", "not msgpack|map with text keys"),
    ],
)
def test_garbage_is_answered_with_words(server, message, words):
    assert re.search(words, told(server, message))


def test_garbage_instead_of_a_handshake_or_a_frame(server):
    raw = tcp(server)
    raw.sendall(os.urandom(2000))
    until_closed(raw)
    raw = handshaken(server)
    raw.sendall(b"\xff" * 100)  # reserved bits and opcode
    assert b"\x88" in until_closed(raw)


def test_a_message_that_comes_too_slowly_ends_the_connection(server):
    """A client in the middle of a frame cannot answer pings; so a slow one has one interval and one more."""
    raw = handshaken(server)
    raw.sendall(frame_header(1000))
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 15:
            raw.sendall(b"\0")
            time.sleep(0.1)
    assert time.monotonic() - began < 12


def test_a_handshake_that_comes_too_slowly_ends_the_connection(server):
    raw = tcp(server)
    raw.sendall(b"GET / HTTP/1.1\r\n")
    began = time.monotonic()
    until_closed(raw)
    assert time.monotonic() - began < 10


def test_a_client_that_stays_silent_makes_room(policy, folder):
    limits = Limits(idle_timeout=0.3)
    table = ContextTable(policy, folder)
    with in_background(policy, table, ServeConfig(port=0, limits=limits)) as server, connect(server.address) as client:
        client.recv()
        with pytest.raises(ConnectionClosedOK, match=r"no request came within 0\.3 s; connect again"):
            client.recv(timeout=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_never_reaches_the_model(server, bad):
    state = np.array([0.0, bad, 0.0], np.float32)
    assert "observation.state[1] is" in told(server, pack({**observation(), "observation.state": state}))
    huge = np.array([0.0, 1e300, 0.0])
    assert "send the units of the play" in told(server, pack({**observation(), "observation.state": huge}))


def test_pickles_and_objects_are_refused(server):
    state = {b"__ndarray__": True, b"data": b"cos\nsystem\n(S'true'\ntR.", b"dtype": "|O", b"shape": [3]}
    assert "objects and pickles are never read" in told(server, msgpack.packb({"observation.state": state}))


def test_an_unknown_embodiment_and_a_context_of_another_model(server):
    words = told(server, pack(observation()), "/?embodiment=nobody")
    assert "embodiment 'nobody' cannot be served; known are fast, slow" in words
    words = told(server, pack({**observation(), "embodiment": "foreign"}))
    assert "embodiment 'foreign' cannot be served: " in words and "align this model to the body's play" in words


def test_a_camera_that_the_model_lacks_is_named(server):
    words = told(server, pack({**observation(), "observation.images.left": np.zeros((16, 16, 3), np.uint8)}))
    assert "unknown observation.images.left; the model reads observation.images.scene" in words


def test_what_breaks_inside_stays_in_the_log(server, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret detail of /some/path")

    with monkeypatch.context() as patch:
        patch.setattr(server.policy.model, "sample_actions", broken)
        words = told(server, pack(observation()))
    assert "secret" not in words and "its log has the reason under " in words
    record = next(r for r in caplog.records if words.split()[-1] in r.getMessage())
    assert "secret detail" in str(record.exc_info)


def test_an_answer_that_takes_too_long_is_given_up(policy, folder, monkeypatch):
    table = ContextTable(policy, folder)
    config = ServeConfig(port=0, limits=Limits(request_timeout=0.3))
    with in_background(policy, table, config) as server:
        monkeypatch.setattr(server._batcher, "_forward", lambda queries: time.sleep(1) or [None] * len(queries))
        assert "no answer within 0.3 s: the server is overloaded" in told(server, pack(observation()))


def test_a_client_that_never_reads_is_let_go(policy, folder):
    """Its answers fill every buffer on the way; the server gives up sending and frees the place."""
    limits = Limits(request_timeout=0.5, handshake_timeout=0.5, ping_interval=0.5, rate=1e9)
    config = ServeConfig(port=0, num_steps=1, max_wait_ms=0, limits=limits)
    with in_background(policy, ContextTable(policy, folder), config) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = urlsplit(server.address)
        raw.connect((address.hostname, address.port))
        raw.sendall(HANDSHAKE.format(host="127.0.0.1").encode())
        data = pack({"reset": True})
        header = bytes([0x82, 0x80 | len(data)]) + b"\0\0\0\0"
        raw.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(200):
                raw.sendall((header + data) * 1000)
        end = time.monotonic() + 10
        while server._open and time.monotonic() < end:
            time.sleep(0.02)
        assert not server._open
        raw.close()
