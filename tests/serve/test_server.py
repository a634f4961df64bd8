"""The server over real sockets: the protocol of openpi, contexts, keys, TLS, metrics, shutdown."""

import asyncio
import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from align.factory import small_policy
from selfalign.checkpoint import save_checkpoint
from selfalign.serve.client import Client
from selfalign.serve.config import Limits, ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.protocol import pack, unpack
from selfalign.serve.server import PolicyServer, in_background
from serve.serving import observation, robot_context, run, write_contexts
from serve.test_protocol import FRAMES

KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def table(policy, tmp_path_factory):
    return ContextTable(policy, write_contexts(policy, tmp_path_factory.mktemp("contexts")))


@pytest.fixture(scope="module")
def server(policy, table):
    with in_background(policy, table, ServeConfig(port=0, num_steps=2, max_wait_ms=20)) as server:
        yield server


def get(server, path: str, headers=None) -> tuple[int, str]:
    address = urlsplit(server.address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_a_conversation_is_openpis(server):
    with connect(server.address, compression=None) as socket:
        metadata = socket.recv()
        assert isinstance(metadata, bytes)
        told = unpack(metadata)
        assert told["embodiments"]["slow"] == {"state_dim": 3, "action_dim": 3}
        assert (told["cameras"], told["image_size"], told["action_horizon"]) == (["scene"], 16, 4)
        assert told["acting"] == {"speed": 1.0, "temperature": 1.0}
        for count in range(3):
            socket.send(pack({**observation(), "embodiment": "slow"}))
            reply = socket.recv()
            assert isinstance(reply, bytes)
            answer = unpack(reply)
            assert answer["actions"].shape == (4, 3) and answer["actions"].dtype == np.float32
            assert answer["policy_timing"]["infer_ms"] > 0
            assert answer["server_timing"].keys() == ({"infer_ms", "prev_total_ms"} if count else {"infer_ms"})


def test_a_frame_of_openpis_client_is_answered(server):
    with connect(f"{server.address}/?embodiment=slow", compression=None) as socket:
        socket.recv()
        socket.send(FRAMES["observation"])
        assert unpack(socket.recv())["actions"].shape == (4, 3)


def test_an_error_is_a_text_frame_and_then_1011(server):
    with connect(server.address, compression=None) as socket:
        socket.recv()
        socket.send(pack({"task": "go"}))
        words = socket.recv()
        assert isinstance(words, str) and "the request has no 'observation.state'; send observation.images" in words
        with pytest.raises(ConnectionClosedError) as error:
            socket.recv()
    assert error.value.rcvd is not None and error.value.rcvd.code == 1011


def test_the_embodiment_is_that_of_the_request_or_of_the_connection(server, policy, table):
    slow, fast = (table.get(name) for name in ("slow", "fast"))

    def acts(connection: str | None, request: str | None) -> str:
        address = server.address + (f"/?embodiment={connection}" if connection else "")
        with connect(address, compression=None) as socket:
            socket.recv()
            socket.send(pack({**observation(), **({"embodiment": request} if request else {})}))
            frame = socket.recv()
            return frame if isinstance(frame, str) else unpack(frame)["embodiment"]

    assert slow.context.distance(fast.context) > 0
    assert (acts(None, "fast"), acts("fast", None), acts("slow", "fast")) == ("fast", "fast", "fast")
    assert "say which embodiment this is: send 'embodiment', one of fast, slow" in acts(None, None)
    assert "embodiment 'sloth' cannot be served; known are fast, slow" in acts("sloth", None)


def test_the_answer_is_the_policys_for_the_same_noise(server, policy, table):
    with Client(server.address, embodiment="fast") as client:
        client.reset(seed=11)
        answers = [client.infer(observation())["actions"] for _ in range(2)]
    generator = torch.Generator().manual_seed(11)
    for answer in answers:
        noise = torch.randn(4, 5, generator=generator)
        expected = policy.act(observation(), table.get("fast").context, noise=noise, num_steps=2)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-4)


def test_many_robots_at_once_get_what_each_would_get_alone(server, table):
    names = ["slow", "fast"] * 4

    def ask(seed: int, name: str) -> tuple[np.ndarray, int]:
        with Client(server.address, embodiment=name) as client:
            client.reset(seed=seed)
            answers = [client.infer(observation(seed, "go " * (1 + seed % 3))) for _ in range(3)]
        return np.stack([a["actions"] for a in answers]), max(a["policy_timing"]["batch"] for a in answers)

    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(ask, range(len(names)), names))
    assert max(batch for _, batch in together) > 1, "nothing was batched"
    for seed, name in enumerate(names):
        scale = table.get(name).stats.action.std
        np.testing.assert_allclose(together[seed][0] / scale, ask(seed, name)[0] / scale, rtol=0, atol=1e-5)


def test_health_and_metrics_are_plain_http(server):
    assert get(server, "/healthz") == (200, "OK\n")
    with Client(server.address, embodiment="slow") as client:
        client.infer(observation())
        status, text = get(server, "/metrics")
    assert status == 200 and "selfalign_connections 1.0" in text
    assert 'selfalign_requests_total{embodiment="slow",outcome="ok"}' in text
    assert get(server, "/")[0] == 426


def test_a_web_page_may_not_connect(server):
    with pytest.raises(InvalidStatus) as error:
        connect(server.address, origin=Origin("http://evil.example"))
    assert error.value.response.status_code == 403


def test_keys_open_the_server_and_its_metrics(policy, table, tmp_path):
    (tmp_path / "keys").write_text(KEY)
    with in_background(policy, table, ServeConfig(port=0, num_steps=1, api_keys=tmp_path / "keys")) as server:
        with Client(server.address, embodiment="slow", api_key=KEY) as client:
            assert client.infer(observation())["actions"].shape == (4, 3)
        for key in (None, KEY + "x"):
            with pytest.raises(PermissionError, match=r"refused the connection \(401\): This server wants a key"):
                Client(server.address, api_key=key)
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/metrics")[0] == 401
        status, text = get(server, "/metrics", {"Authorization": f"Api-Key {KEY}"})
        assert status == 200 and 'selfalign_refused_total{reason="key"} 3.0' in text


def test_tls_by_certificate_files(policy, table, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    config = ServeConfig(port=0, num_steps=1, tls_certificate=certificate, tls_key=key)
    with in_background(policy, table, config) as server:
        assert server.address.startswith("wss://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with Client(server.address, embodiment="slow", tls=trusted) as client:
            assert client.infer(observation())["actions"].shape == (4, 3)
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(server.address)


def test_more_connections_than_allowed_are_turned_away(policy, table):
    config = ServeConfig(port=0, num_steps=1, limits=Limits(connections=2))
    with in_background(policy, table, config) as server, connect(server.address), connect(server.address):
        with pytest.raises(InvalidStatus) as error:
            connect(server.address)
        assert error.value.response.status_code == 503
        assert get(server, "/healthz")[0] == 200


def test_who_asks_too_often_is_slowed_down(policy, table):
    config = ServeConfig(port=0, num_steps=1, max_wait_ms=0, limits=Limits(rate=20))
    with in_background(policy, table, config) as server, Client(server.address, embodiment="slow") as client:
        began = time.monotonic()
        for _ in range(30):
            client.reset()
        assert time.monotonic() - began >= 0.45, "20 at once, 10 more at 20 a second"


def test_requests_of_one_connection_are_answered_in_their_order(server):
    """Sent at once, without waiting: as many answers, and each in its place."""

    async def main():
        async with connect_async(f"{server.address}/?embodiment=slow", compression=None) as client:
            await client.recv()
            for n in range(8):
                await client.send(pack({**observation(), "embodiment": ["slow", "fast"][n % 2]}))
            answers = [unpack(await client.recv()) for _ in range(8)]
        return [answer["embodiment"] for answer in answers]

    assert run(main()) == ["slow", "fast"] * 4


def test_a_stop_lets_requests_under_way_finish(policy, table):
    async def main():
        async with PolicyServer(policy, table, ServeConfig(port=0, num_steps=2, max_wait_ms=200)) as server:
            idle = await connect_async(server.address)
            busy = await connect_async(f"{server.address}/?embodiment=slow", compression=None)
            await busy.recv()
            await busy.send(pack(observation()))
            while not server._busy:
                await asyncio.sleep(0.001)
        assert unpack(await busy.recv())["actions"].shape == (4, 3)
        await idle.recv()
        for socket in (busy, idle):
            with pytest.raises(ConnectionClosedOK) as error:
                await socket.recv()
            assert error.value.rcvd is not None and error.value.rcvd.code == 1001

    run(main())


def test_addresses_beyond_this_machine_are_refused_without_keys(policy, table):
    with pytest.raises(ValueError, match=r"refusing to listen on 0\.0\.0\.0 without keys"):
        PolicyServer(policy, table, ServeConfig(host="0.0.0.0"))


def test_a_port_that_is_taken_is_an_error(policy, table, server):
    port = urlsplit(server.address).port
    with pytest.raises(OSError, match="address already in use"), in_background(policy, table, ServeConfig(port=port)):
        pass


def test_the_command_serves_until_it_is_told_to_stop(policy, tmp_path):
    save_checkpoint(policy, tmp_path / "checkpoint")
    write_contexts(policy, tmp_path / "contexts")
    code = "import sys; from selfalign.cli import main; sys.exit(main())"
    arguments = ["serve", "--checkpoint", "checkpoint", "--contexts", "contexts", "--port", "0", "--num-steps", "1"]
    arguments += ["--temperature", "0"]
    arguments += ["--rate", "50", "--rename", "cam", "observation.images.scene"]
    source = str(Path(__file__).parents[2] / "src")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line)
        assert "serving fast, slow on ws://127.0.0.1:" in line
        raw = observation()
        raw["cam"] = raw.pop("observation.images.scene")
        with Client(line.split()[-1], embodiment="fast") as client:
            actions = client.infer(raw)["actions"]
            assert actions.shape == (4, 3) and np.array_equal(actions, client.infer(raw)["actions"]), "without noise"
            robot_context(policy, "new").save(tmp_path / "contexts" / "new.safetensors")
            process.send_signal(signal.SIGHUP)
            assert "serving fast, new, slow\n" in next(line for line in process.stderr if "serving" in line)
            assert client.infer({**raw, "embodiment": "new"})["embodiment"] == "new"
            (tmp_path / "contexts").rename(tmp_path / "elsewhere")
            process.send_signal(signal.SIGHUP)
            assert "contexts is not a folder of contexts" in next(line for line in process.stderr if "ERROR" in line)
            assert client.infer({**raw, "embodiment": "new"})["embodiment"] == "new", "as before"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_robots_without_a_seed_have_noise_of_their_own(policy, table):
    with in_background(policy, table, ServeConfig(port=0, num_steps=1)) as server:
        answers = []
        for _ in range(2):
            with Client(server.address, embodiment="slow") as client:
                answers += [client.infer(observation())["actions"] for _ in range(2)]
    assert len({answer.tobytes() for answer in answers}) == 4
