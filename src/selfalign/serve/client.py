"""The robot's side: `Client` and `AsyncClient` ask a policy server, and a broker turns its chunks into single actions.

    with Client("ws://127.0.0.1:8000", embodiment="my_robot") as client:
        robot = ActionChunkBroker(client, execute=4)
        while True:
            command(robot.act(observation))

Both talk to openpi's server as well, and have the methods of openpi's client (`infer`, `reset`, `get_server_metadata`).
"""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from websockets.asyncio import client as asyncio_client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync import client as sync_client

from selfalign.serve.chunks import ActionChunks
from selfalign.serve.protocol import pack, unpack

LARGE = 2**20
"""Entries of a message: a robot trusts the server that it obeys more than the server trusts it."""
Observation = Mapping[str, Any]


class ServerError(RuntimeError):
    """The server refused a request, or failed; its own words."""


@dataclass(frozen=True)
class Backoff:
    """How often and how long to try a server that cannot be reached.

    Waits grow by `factor` and are spread at random, so that robots do not all come back in the same moment.
    """

    first: float = 0.1
    """Seconds."""
    factor: float = 2.0
    longest: float = 5.0
    patience: float = 60.0
    """Seconds after which `ConnectionError` is raised; what the robot saw is that old by then. 0: one try."""

    def delays(self) -> Iterator[float]:
        """Seconds to wait before each further try, until patience is over."""
        end, delay = time.monotonic() + self.patience, self.first
        while (left := end - time.monotonic()) > 0:
            yield min(left, delay * random.uniform(0.5, 1.0))
            delay = min(delay * self.factor, self.longest)


@dataclass(frozen=True)
class _Connection:
    """What both clients are told, and what of the conversation needs no socket."""

    address: str = "ws://127.0.0.1:8000"
    """ws:// or wss://, host and port."""
    embodiment: str | None = None
    """Whose context the server acts with; None: the only one it has."""
    api_key: str | None = None
    timeout: float = 30.0
    """Seconds that one answer may take."""
    backoff: Backoff = Backoff()
    tls: ssl.SSLContext | None = None
    """For a certificate that this machine does not know: `ssl.create_default_context(cafile=...)`."""

    @property
    def uri(self) -> str:
        return self.address + (f"/?embodiment={quote(self.embodiment, safe='')}" if self.embodiment else "")

    @property
    def options(self) -> dict[str, Any]:
        headers = {"Authorization": f"Api-Key {self.api_key}"} if self.api_key else None
        more = {"ssl": self.tls} if self.tls is not None else {}
        return {
            "compression": None,
            "max_size": None,
            "additional_headers": headers,
            "open_timeout": self.timeout,
            "proxy": None,
            **more,
        }

    def pause(self, error: BaseException, delays: Iterator[float]) -> float:
        """Seconds until the next try, after what has ended the last one; raises what the caller should see if there is
        none."""
        if not isinstance(error, Exception):
            raise error
        self._raise_if_final(error)
        delay = next(delays, None)
        if delay is None:
            raise ConnectionError(
                f"no answer from {self.address} for {self.backoff.patience:g} s ({type(error).__name__}: {error}); is "
                "`selfalign serve` running there?"
            ) from error
        return delay

    def _raise_if_final(self, error: Exception) -> None:
        """Where trying again cannot help."""
        if isinstance(error, InvalidStatus):
            status, body = error.response.status_code, (error.response.body or b"").decode(errors="replace").strip()
            if status in (401, 403):
                raise PermissionError(f"{self.address} refused the connection ({status}): {body}") from error
            if status < 500:
                raise ConnectionError(f"{self.address} is no policy server ({status}): {body[:200]}") from error
        elif isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
            raise ServerError(f"the request is too large ({error.rcvd.reason}); send smaller pictures") from error
        elif isinstance(error, ssl.SSLCertVerificationError) or not isinstance(
            error, OSError | EOFError | ConnectionClosed | InvalidHandshake
        ):
            raise error


def _answer(frame: bytes | str) -> dict[str, Any]:
    if isinstance(frame, str):
        raise ServerError(frame)
    return unpack(frame, max_entries=LARGE)


def _reset(seed: int | None) -> dict[str, Any]:
    return {"reset": True} | ({} if seed is None else {"seed": seed})


class Client:
    """A connection to a policy server, opened again whenever it is lost.

    Args: those of `_Connection`, by name.

    Raises:
        ConnectionError: the server cannot be reached within the patience of `backoff`.
        PermissionError: it wants another key.
    """

    def __init__(self, address: str = "ws://127.0.0.1:8000", **options: Any):
        self._told = _Connection(address, **options)
        self._socket: sync_client.ClientConnection | None = None
        self._open = ExitStack()
        self.metadata: dict[str, Any] = {}
        """What the server says of itself: cameras, image_size, action_horizon, embodiments."""
        self._try(self._connected)

    def infer(self, observation: Observation) -> dict[str, Any]:
        """The server's answer; its `actions` are float32 [H, A] in the robot's units.

        Args:
            observation: `observation.images.<camera>` uint8 [H, W, 3], `observation.state` float [S], `task`.

        Raises:
            ServerError: the server says what is wrong with the observation. The next call connects anew.
            ConnectionError: the server could not be reached for too long.
            ProtocolError: the observation holds what cannot be sent.
        """
        return self._ask(dict(observation))

    def reset(self, seed: int | None = None) -> None:
        """A new episode begins; with a seed, its noise is always the same (as long as the connection lasts)."""
        self._ask(_reset(seed))

    def get_server_metadata(self) -> dict[str, Any]:
        """`metadata`, as openpi's client calls it."""
        return self.metadata

    def close(self) -> None:
        """Ends the connection; a later request opens it again."""
        self._open.close()
        self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        data = pack(message)
        return self._try(lambda: self._exchange(data))

    def _exchange(self, data: bytes) -> dict[str, Any]:
        socket = self._connected()
        socket.send(data)
        return _answer(socket.recv(timeout=self._told.timeout))

    def _connected(self) -> sync_client.ClientConnection:
        if self._socket is not None:
            return self._socket
        # From here on, whatever fails closes it.
        self._socket = socket = self._open.enter_context(sync_client.connect(self._told.uri, **self._told.options))
        self.metadata = _answer(socket.recv(timeout=self._told.timeout))
        return socket

    def _try(self, action) -> Any:
        """Until it succeeds, the server has spoken, or patience is over."""
        delays = self._told.backoff.delays()
        while True:
            try:
                return action()
            except BaseException as error:
                # Interrupted in the middle, the answer would still come and be taken for that of the next request.
                self.close()
                time.sleep(self._told.pause(error, delays))


class AsyncClient:
    """`Client` for asyncio: `async with AsyncClient(...) as client`. One request at a time; errors as there."""

    def __init__(self, address: str = "ws://127.0.0.1:8000", **options: Any):
        self._told = _Connection(address, **options)
        self._socket: asyncio_client.ClientConnection | None = None
        self.metadata: dict[str, Any] = {}
        self._turn = asyncio.Lock()

    async def infer(self, observation: Observation) -> dict[str, Any]:
        """As `Client.infer`."""
        return await self._ask(dict(observation))

    async def reset(self, seed: int | None = None) -> None:
        """As `Client.reset`."""
        await self._ask(_reset(seed))

    def get_server_metadata(self) -> dict[str, Any]:
        """As `Client.get_server_metadata`; empty until the connection is open."""
        return self.metadata

    async def close(self) -> None:
        """As `Client.close`."""
        if self._socket is not None:
            socket, self._socket = self._socket, None
            await socket.close()

    async def __aenter__(self) -> Self:
        async with self._turn:
            await self._try(self._connected)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        data = pack(message)
        async with self._turn:  # an answer belongs to the request before it
            return await self._try(lambda: self._exchange(data))

    async def _exchange(self, data: bytes) -> dict[str, Any]:
        socket = await self._connected()
        await socket.send(data)
        return _answer(await asyncio.wait_for(socket.recv(), self._told.timeout))

    async def _connected(self) -> asyncio_client.ClientConnection:
        if self._socket is None:
            self._socket = await asyncio_client.connect(self._told.uri, **self._told.options)
            self.metadata = _answer(await asyncio.wait_for(self._socket.recv(), self._told.timeout))
        return self._socket

    async def _try(self, action) -> Any:
        delays = self._told.backoff.delays()
        while True:
            try:
                return await action()
            except BaseException as error:
                await self.close()
                await asyncio.sleep(self._told.pause(error, delays))


# ---- one action at a time ------------------------------------------------------------------------------------------


class Asked(Protocol):
    """`Client`, or openpi's."""

    def infer(self, obs: Any, /) -> dict[str, Any]: ...
    def reset(self) -> None: ...


class AskedAsync(Protocol):
    """`AsyncClient`."""

    def infer(self, observation: Any, /) -> Awaitable[dict[str, Any]]: ...
    def reset(self) -> Awaitable[None]: ...


Client_ = TypeVar("Client_")


class _Broker(Generic[Client_]):
    """The plan, and what was carried out since the last request, for servers that learn from it."""

    def __init__(self, client: Client_, execute: int | None = None, smoothing: float | None = None):
        self._client, self._chunks = client, ActionChunks(execute, smoothing)
        self._executed: list[np.ndarray] = []

    @property
    def wants_observation(self) -> bool:
        """Whether the next `act` looks at its observation; a robot may save itself the pictures where not."""
        return self._chunks.wants_chunk

    def _told(self, observation: Observation) -> Observation:
        """The observation, with the actions that led to it where the server wants to know; they are told once."""
        actions, self._executed = self._executed, []
        if not actions or "executed" in observation or not getattr(self._client, "metadata", {}).get("learns"):
            return observation
        return {**observation, "executed": np.stack(actions).astype(np.float32)}

    def _next(self) -> Float[np.ndarray, " A"]:
        self._executed.append(action := self._chunks.next())
        return action

    def _forget(self) -> None:
        self._chunks.clear()
        self._executed.clear()


class ActionChunkBroker(_Broker[Asked]):
    """One action a step: asks when the plan is used up. A server that learns is told which actions were carried out.

    Args:
        client: whom to ask.
        execute, smoothing: those of `ActionChunks`.
    """

    def act(self, observation: Observation) -> Float[np.ndarray, " A"]:
        """The action of this step, in the robot's units."""
        if self.wants_observation:
            self._chunks.push(self._client.infer(self._told(observation))["actions"])
        return self._next()

    def reset(self) -> None:
        """A new episode begins."""
        self._forget()
        self._client.reset()


class AsyncActionChunkBroker(_Broker[AskedAsync]):
    """`ActionChunkBroker` for asyncio."""

    async def act(self, observation: Observation) -> Float[np.ndarray, " A"]:
        """As `ActionChunkBroker.act`."""
        if self.wants_observation:
            self._chunks.push((await self._client.infer(self._told(observation)))["actions"])
        return self._next()

    async def reset(self) -> None:
        """A new episode begins."""
        self._forget()
        await self._client.reset()
