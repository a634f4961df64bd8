"""The clients against our server and against one that misbehaves."""

import asyncio
import http
import threading
import time
from collections.abc import Collection

import numpy as np
import pytest
from websockets.sync.server import serve

from align.factory import small_policy
from selfalign.serve.chunks import ActionChunks
from selfalign.serve.client import ActionChunkBroker, AsyncActionChunkBroker, AsyncClient, Backoff, Client, ServerError
from selfalign.serve.config import Limits, ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.protocol import ProtocolError, pack, unpack
from selfalign.serve.server import in_background
from serve.serving import observation, run, write_contexts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    policy = small_policy()
    table = ContextTable(policy, write_contexts(policy, tmp_path_factory.mktemp("contexts")))
    with in_background(policy, table, ServeConfig(port=0, num_steps=1)) as server:
        yield server


def test_both_clients_get_the_same_answer(server):
    with Client(server.address, embodiment="slow") as client:
        client.reset(seed=5)
        expected = client.infer(observation())["actions"]
        assert client.get_server_metadata()["action_horizon"] == 4

    async def main():
        async with AsyncClient(server.address, embodiment="slow") as client:
            await client.reset(seed=5)
            return (await client.infer(observation()))["actions"], client.get_server_metadata()

    actions, metadata = run(main())
    np.testing.assert_array_equal(actions, expected)
    assert metadata["cameras"] == ["scene"]


def test_the_servers_words_are_raised_and_the_next_request_connects_anew(server):
    with Client(server.address, embodiment="slow") as client:
        for _ in range(2):
            with pytest.raises(ServerError, match=r"has no 'observation.state'"):
                client.infer({"task": "go"})
            assert client.infer(observation())["actions"].shape == (4, 3)
        with pytest.raises(ProtocolError, match="cannot be sent"):
            client.infer({"task": object()})

    async def main():
        async with AsyncClient(server.address, embodiment="slow") as client:
            with pytest.raises(ServerError, match=r"has no 'observation.state'"):
                await client.infer({"task": "go"})
            return (await client.infer(observation()))["actions"].shape

    assert run(main()) == (4, 3)


def test_requests_that_are_made_at_once_take_turns(server):
    async def main():
        async with AsyncClient(server.address) as client:
            names = ["slow", "fast"] * 4
            answers = await asyncio.gather(*(client.infer({**observation(), "embodiment": n}) for n in names))
            return [a["embodiment"] for a in answers] == names

    assert run(main())


def test_a_request_that_was_cancelled_leaves_no_answer_behind(server):
    async def main():
        async with AsyncClient(server.address) as client:
            late = asyncio.ensure_future(client.infer({**observation(), "embodiment": "slow"}))
            await asyncio.sleep(0.001)
            late.cancel()
            return (await client.infer({**observation(), "embodiment": "fast"}))["embodiment"]

    assert run(main()) == "fast"


def test_a_request_that_is_too_large_is_not_tried_again(server):
    large = {**observation(), "observation.images.scene": np.zeros((2500, 2500, 3), np.uint8)}
    with Client(server.address, embodiment="slow") as client:
        with pytest.raises(ServerError, match=r"too large \(frame with 18\d{6} bytes exceeds .*send smaller pictures"):
            client.infer(large)
        assert client.infer(observation())["actions"].shape == (4, 3)


def test_a_connection_that_was_silent_for_too_long_is_opened_again(server):
    """The server has closed it meanwhile, which is nobody's mistake."""
    config = ServeConfig(port=0, num_steps=1, limits=Limits(idle_timeout=0.2))

    def silence(impatient) -> None:
        end = time.monotonic() + 20
        while impatient._open and time.monotonic() < end:
            time.sleep(0.02)
        assert not impatient._open

    async def main(impatient):
        async with AsyncClient(impatient.address, embodiment="slow", backoff=QUICK) as client:
            await asyncio.to_thread(silence, impatient)
            return (await client.infer(observation()))["actions"].shape

    with in_background(server.policy, server.contexts, config) as impatient:
        with Client(impatient.address, embodiment="slow", backoff=QUICK) as client:
            silence(impatient)
            assert client.infer(observation())["actions"].shape == (4, 3)
        assert run(main(impatient)) == (4, 3)


class Moody:
    """A server that answers every request with its number; it drops the connection, or says nothing, when told to."""

    def __init__(self, drops: Collection[int] = (), refuse: int = 0, silent: Collection[int] = ()):
        self.drops, self.refuse, self.silent, self.requests, self.connections = drops, refuse, silent, 0, 0
        self._server = serve(self._converse, "127.0.0.1", 0, compression=None, process_request=self._on_http)
        self.address = "ws://{}:{}".format(*self._server.socket.getsockname())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()

    def _on_http(self, connection, _):
        self.connections += 1
        if self.connections <= self.refuse:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "full")
        return None

    def _converse(self, connection):
        connection.send(pack({"name": "moody"}))
        for data in connection:
            self.requests += 1
            if self.requests in self.drops:
                connection.socket.close()
                return
            if self.requests in self.silent:
                continue
            connection.send(pack({"actions": np.full((2, 1), self.requests), "got": unpack(data)}))


QUICK = Backoff(first=0.01, longest=0.05, patience=20.0)


def test_a_lost_connection_is_opened_again_and_the_request_repeated():
    with Moody(drops={2, 3, 5}) as server, Client(server.address, backoff=QUICK) as client:
        answers = [client.infer({"n": n})["got"]["n"] for n in range(4)]
        assert answers == [0, 1, 2, 3] and server.requests == 7 and server.connections == 4


def test_the_asynchronous_client_comes_back_too():
    async def main(server):
        async with AsyncClient(server.address, backoff=QUICK) as client:
            return [(await client.infer({"n": n}))["got"]["n"] for n in range(4)]

    with Moody(drops={2, 3, 5}) as server:
        assert run(main(server)) == [0, 1, 2, 3] and server.requests == 7


def test_an_answer_that_never_comes_is_asked_for_again():
    async def main(server):
        async with AsyncClient(server.address, timeout=1.0, backoff=QUICK) as client:
            return (await client.infer({"n": 5}))["got"]["n"]

    with Moody(silent={1, 3}) as server:
        with Client(server.address, timeout=1.0, backoff=QUICK) as client:
            assert client.infer({"n": 4})["got"]["n"] == 4
        assert run(main(server)) == 5 and server.requests == 4


def test_a_full_server_is_asked_again():
    with Moody(refuse=3) as server, Client(server.address, backoff=QUICK):
        assert server.connections == 4


def test_patience_ends():
    with Moody() as server:
        address = server.address
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer from ws://.* for 0.3 s .*is `selfalign serve` running there"):
        Client(address, backoff=Backoff(first=0.01, patience=0.3))
    assert 0.3 <= time.monotonic() - began < 10

    async def main():
        async with AsyncClient(address, backoff=Backoff(patience=0.0)):
            pass

    with pytest.raises(ConnectionError, match="no answer from"):
        run(main())


def test_waits_grow_and_are_spread():
    delays = Backoff(first=1.0, factor=2.0, longest=8.0, patience=1e6).delays()
    waits = [next(delays) for _ in range(8)]
    for wait, most in zip(waits, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert most / 2 <= wait <= most
    assert len({round(w, 6) for w in waits[3:]}) > 1
    assert list(Backoff(patience=0.0).delays()) == []


# ---- one action at a time ------------------------------------------------------------------------------------------


def chunk(start: float, length: int = 4) -> np.ndarray:
    return (start + np.arange(length, dtype=np.float64))[:, None] * np.ones(2)


def follow(chunks: ActionChunks, steps: int, pushed: list[np.ndarray]) -> list[float]:
    """First components of the actions; a new chunk whenever one is wanted."""
    actions, rest = [], iter(pushed)
    for _ in range(steps):
        if chunks.wants_chunk:
            chunks.push(next(rest))
        actions.append(float(chunks.next()[0]))
    return actions


def test_the_newest_chunk_is_followed():
    assert follow(ActionChunks(), 6, [chunk(0), chunk(100)]) == [0, 1, 2, 3, 100, 101]
    assert follow(ActionChunks(execute=2), 5, [chunk(0), chunk(100), chunk(200)]) == [0, 1, 100, 101, 200]
    assert follow(ActionChunks(execute=9), 5, [chunk(0), chunk(100)]) == [0, 1, 2, 3, 100]


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("execute", [None, 2])
def test_smoothing_is_the_weighted_mean_of_all_plans_of_a_step(decay, execute):
    rng, every = np.random.default_rng(0), execute or 1
    pushed = [rng.normal(size=(4, 2)) for _ in range(12)]
    actions = follow(ActionChunks(execute, smoothing=decay), 12, pushed)
    for t, action in enumerate(actions):
        plans = [pushed[k][t - k * every] for k in range(t // every + 1) if t - k * every < 4]
        weights = np.exp(-decay * np.arange(len(plans)))
        assert action == pytest.approx(float(weights @ np.array(plans)[:, 0] / weights.sum()))


def test_a_new_episode_forgets_the_plans():
    chunks = ActionChunks(smoothing=0.1)
    follow(chunks, 3, [chunk(0), chunk(1), chunk(2)])
    chunks.clear()
    assert chunks.wants_chunk and follow(chunks, 1, [chunk(50)]) == [50]


def test_chunks_that_mean_nothing_are_refused():
    for make in (lambda: ActionChunks(execute=0), lambda: ActionChunks(smoothing=-1.0)):
        with pytest.raises(ValueError, match="execute must be at least 1"):
            make()
    chunks = ActionChunks()
    with pytest.raises(LookupError, match="push one first"):
        chunks.next()
    chunks.push(chunk(0))
    for wrong in (np.zeros(3), np.zeros((0, 2)), np.zeros((4, 3))):
        with pytest.raises(ValueError, match="a chunk is"):
            chunks.push(wrong)


def test_brokers_ask_only_when_the_plan_is_used_up(server, monkeypatch):
    with Client(server.address, embodiment="slow") as client:
        asked = []
        ask = client.infer
        monkeypatch.setattr(client, "infer", lambda obs: asked.append(ask(obs)) or asked[-1])
        robot = ActionChunkBroker(client, execute=3)
        actions = []
        for step in range(7):
            assert robot.wants_observation == (step % 3 == 0)
            actions.append(robot.act(observation()))
        np.testing.assert_array_equal(actions, [asked[t // 3]["actions"][t % 3] for t in range(7)])
        robot.reset()
        assert robot.wants_observation

    async def main():
        async with AsyncClient(server.address, embodiment="slow") as client:
            robot, wanted, shapes = AsyncActionChunkBroker(client, execute=2, smoothing=0.1), [], []
            for _ in range(3):
                wanted.append(robot.wants_observation)
                shapes.append((await robot.act(observation())).shape)
            await robot.reset()
            return wanted, shapes, robot.wants_observation

    assert run(main()) == ([True, False, True], [(3,)] * 3, True)
