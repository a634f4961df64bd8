"""`PolicyServer`: sockets, HTTP and the life of the process around `Session`.

GET /healthz     200 OK, for whoever asks whether the process lives
GET /metrics     Prometheus's text, with a key where keys are configured
/dashboard, /learn...   where the server learns; see `selfalign.serve.learning`
anything else    WebSocket; `?embodiment=NAME` in the address chooses the context of the connection
"""

import asyncio
import contextlib
import http
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from selfalign.model.tokenizer import MissingTokenizer
from selfalign.policy import Policy
from selfalign.serve.access import ApiKeys, RateLimit, check_exposure, is_loopback, tls_context
from selfalign.serve.batching import Batcher, Query, infer
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable, check_folder
from selfalign.serve.learning import PAGE, Learning, forged, page
from selfalign.serve.metrics import Metrics
from selfalign.serve.protocol import pack
from selfalign.serve.requests import RequestReader
from selfalign.serve.session import Desk, ReplyError, Session, describe

log = logging.getLogger(__name__)
_FOR_BROWSERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # The page talks to this server alone, and no other page may frame it to have its buttons clicked.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
# A refused handshake is somebody else's mistake; with its traceback it would fill the log.
_quiet = logging.getLogger(f"{__name__}.websockets")
_quiet.setLevel(logging.CRITICAL)


class PolicyServer:
    """Serves one policy to many robots: `async with PolicyServer(...) as server: await server.finished()`.

    Args:
        policy: what answers.
        contexts: of the robots that may ask.
        config: address, access, batching and limits. (`checkpoint`, `contexts` and `learn` are not read here.)
        learning: starts and stops with the server; None: nothing is learned.

    Raises:
        ValueError: an address beyond this machine without keys, or keys or certificates that cannot be used.
    """

    def __init__(self, policy: Policy, contexts: ContextTable, config: ServeConfig, learning: Learning | None = None):
        check_exposure(config)
        self.policy, self.contexts, self.config, self.learning = policy, contexts, config, learning
        self.metrics = Metrics()
        self._keys = ApiKeys(()) if config.api_keys is None else ApiKeys.read(config.api_keys)
        self._tls = tls_context(config)
        self._open: set[ServerConnection] = set()
        self._stopping = asyncio.Event()
        self._busy = 0

    # ---- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> "PolicyServer":
        config, limits = self.config, self.config.limits
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._batcher: Batcher[Query, np.ndarray] = Batcher(
            self._infer,
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000,
            askers=lambda: len(self._open),
        )
        reader = RequestReader(limits, config.rename, learns=self.learning is not None)
        self._desk = Desk(
            self.policy, self.contexts, reader, self._batcher.ask, self.metrics, self._threads, self.learning
        )
        try:
            self._server: Server = await self._listen()
        except OSError as error:
            self._threads.shutdown()
            raise OSError(
                f"cannot listen on {config.host}, port {config.port}: {error.strerror or error}; give another --port "
                "(0: any free one) or --host"
            ) from error
        self._batcher.start()
        if self.learning is not None:
            self.learning.learner.start(self.contexts.swap)
        return self

    async def _listen(self) -> Server:
        config, limits = self.config, self.config.limits
        return await serve(
            self._converse,
            config.host,
            config.port,
            process_request=self._on_http,
            origins=[None],  # browsers name the page that connects, robots do not: no web page gets in
            compression=None,  # a small message cannot unfold to a large one
            max_size=limits.message_bytes,
            max_queue=1,
            open_timeout=limits.handshake_timeout,
            ping_interval=limits.ping_interval,
            ping_timeout=limits.ping_interval,
            close_timeout=limits.handshake_timeout,
            ssl=self._tls,
            ssl_handshake_timeout=limits.handshake_timeout if self._tls else None,
            logger=_quiet,
        )

    async def __aexit__(self, *_: object) -> None:
        """Lets requests under way finish, then closes all connections with 1001."""
        self._stopping.set()
        self._server.close(close_connections=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.limits.request_timeout):
                while self._busy:
                    await asyncio.sleep(0.005)
        await asyncio.gather(*(c.close(CloseCode.GOING_AWAY) for c in set(self._open)))
        await self._server.wait_closed()
        await self._batcher.stop()
        self._threads.shutdown()
        if self.learning is not None:
            await asyncio.to_thread(self.learning.learner.stop)

    async def finished(self) -> None:
        """Returns once somebody has asked the server to stop."""
        await self._stopping.wait()

    def stop(self) -> None:
        """Asks it; call it in the event loop."""
        self._stopping.set()

    @property
    def address(self) -> str:
        """Where it listens, as a client names it."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{'ws' if self._tls is None else 'wss'}://{f'[{host}]' if ':' in host else host}:{port}"

    def _infer(self, queries: Sequence[Query]) -> Sequence[np.ndarray | Exception]:
        return infer(self.policy, queries, self.config.num_steps)

    # ---- HTTP ------------------------------------------------------------------------------------------------------

    async def _on_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP and refuses who may not come in; None opens the WebSocket."""
        path = urlsplit(request.path).path
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.learning is not None and path == PAGE:
            return _response(*page())
        authorization = request.headers.get_all("Authorization")
        if not self._keys.admit(authorization[0] if len(authorization) == 1 else None):
            self.metrics.refused.labels("key").inc()
            response = connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "This server wants a key: send the header 'Authorization: Api-Key KEY'.\n"
            )
            response.headers["WWW-Authenticate"] = "Api-Key"
            return response
        if path == "/metrics":
            if self.learning is not None:
                self.metrics.learn(await asyncio.to_thread(self.learning.learner.status))
            return _response(http.HTTPStatus.OK, self.metrics.content_type, self.metrics.render())
        if self.learning is not None and self.learning.handles(path):
            if forged(request.headers, keyed=bool(self._keys) or self.config.allow_unprotected):
                return connection.respond(http.HTTPStatus.FORBIDDEN, "Pages from elsewhere have no business here.\n")
            return _response(*await self.learning.answer(request, len(self._open)))
        if len(self._open) >= self.config.limits.connections:
            self.metrics.refused.labels("connections").inc()
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "All connections of this server are taken; try again later.\n"
            )
        return None

    # ---- WebSocket -------------------------------------------------------------------------------------------------

    async def _converse(self, connection: ServerConnection) -> None:
        """One connection from its metadata frame to its end."""
        if len(self._open) >= self.config.limits.connections:  # many handshakes at once
            return await connection.close(CloseCode.TRY_AGAIN_LATER, "all connections are taken")
        self._open.add(connection)
        self.metrics.connections.set(len(self._open))
        try:
            embodiment = _embodiment_in(connection)
            told = describe(self.policy, self.contexts, embodiment, learns=self.learning is not None)
            await self._send(connection, pack(told))
            await self._answer_all(connection, Session(self._desk, embodiment))
        except ReplyError as error:
            log.info("%s: %s", connection.remote_address, error)
            await self._fail(connection, str(error))
        except (ConnectionClosed, TimeoutError):
            pass  # it left, or does not read what it asked for
        finally:
            self._open.discard(connection)
            self.metrics.connections.set(len(self._open))

    async def _answer_all(self, connection: ServerConnection, session: Session) -> None:
        limits, rate = self.config.limits, RateLimit(self.config.limits.rate)
        while not self._stopping.is_set():
            await asyncio.sleep(rate.delay())
            try:
                async with asyncio.timeout(limits.idle_timeout):
                    data = await connection.recv()
            except TimeoutError:  # no error frame: it would be taken for the answer to a request that is on its way
                why = f"no request came within {limits.idle_timeout:g} s; connect again"
                await connection.close(CloseCode.GOING_AWAY, why)
                return
            self._busy += 1
            try:
                await self._send(connection, await session.reply(data))
            finally:
                self._busy -= 1
        await connection.close(CloseCode.GOING_AWAY)

    async def _fail(self, connection: ServerConnection, text: str) -> None:
        """As openpi's server does it: the text, then the end."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            await self._send(connection, text)
            await connection.close(CloseCode.INTERNAL_ERROR, "the error is in the frame before")

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        """Raises `TimeoutError` where the client does not read."""
        async with asyncio.timeout(self.config.limits.request_timeout):
            await connection.send(frame)


def _response(status: http.HTTPStatus, content_type: str, body: str | bytes) -> Response:
    data = body.encode() if isinstance(body, str) else body
    headers = {"Content-Type": content_type, "Content-Length": str(len(data)), "Connection": "close", **_FOR_BROWSERS}
    return Response(status.value, status.phrase, Headers(headers), data)


def _embodiment_in(connection: ServerConnection) -> str | None:
    """What the address says, as in ws://host:8000/?embodiment=my_robot."""
    query = urlsplit(connection.request.path).query if connection.request else ""
    return parse_qs(query).get("embodiment", [None])[0]


# ---- running it ----------------------------------------------------------------------------------------------------


def run(config: ServeConfig) -> None:
    """`selfalign serve`: until SIGINT or SIGTERM; SIGHUP reads the contexts again.

    Raises:
        FileNotFoundError: no checkpoint, or none of the words that it reads by.
        ValueError, OSError: as in `load`, `check_files`, `Learning.build` and `ContextTable`.
    """
    import torch

    from selfalign.checkpoint import load

    check_files(config)  # before a large model is read
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    policy = load(config.checkpoint, config.device, tokenizer=config.tokenizer, robot=config.robot)
    if isinstance(policy.tokenizer, MissingTokenizer):  # it would start, and then answer nobody
        raise FileNotFoundError(f"{policy.tokenizer.reason} Then: selfalign serve --tokenizer PATH")
    policy = policy.acting_at(config.speed, config.temperature)
    learning = None if config.learn is None else Learning.build(policy, config)
    contexts = ContextTable(policy, config.contexts, None if learning is None else learning.learner.adopt)
    asyncio.run(_run(policy, contexts, config, learning))


def check_files(config: ServeConfig) -> None:
    """Whether the server may start, as far as that can be told without its model.

    Raises:
        ValueError: an address beyond this machine without keys; keys, certificates or contexts that cannot be used.
        OSError: a file of keys that cannot be read.
    """
    check_exposure(config)
    tls_context(config)
    if config.api_keys is not None:
        ApiKeys.read(config.api_keys)
    if config.contexts is not None:
        check_folder(config.contexts)


async def _run(policy: Policy, contexts: ContextTable, config: ServeConfig, learning: Learning | None) -> None:
    async with PolicyServer(policy, contexts, config, learning) as server:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, server.stop)
        loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, _refresh, contexts)
        log.info("acting at %s", policy.acting)
        log.info("serving %s on %s", ", ".join(contexts.names), server.address)
        if not is_loopback(config.host) and config.tls_certificate is None:
            log.warning("without TLS, keys and pictures cross the network in clear text: give --tls-certificate")
        await server.finished()
        log.info("stopping")


def _refresh(contexts: ContextTable) -> None:
    try:
        contexts.refresh()
        log.info("serving %s", ", ".join(contexts.names))
    except (OSError, ValueError) as error:
        log.error("the contexts stay as they were: %s", error)


@contextlib.contextmanager
def in_background(
    policy: Policy, contexts: ContextTable, config: ServeConfig, learning: Learning | None = None
) -> Iterator[PolicyServer]:
    """A server in a thread of this process, for notebooks, tests and benchmarks."""
    ready, made = threading.Event(), []

    async def main() -> None:
        async with PolicyServer(policy, contexts, config, learning) as server:
            made.append((server, asyncio.get_running_loop()))
            ready.set()
            await server.finished()

    def target() -> None:
        try:
            asyncio.run(main())
        except Exception as error:
            made.append(error)
            ready.set()

    thread = threading.Thread(target=target, name="serve", daemon=True)
    thread.start()
    ready.wait()
    if isinstance(made[0], Exception):
        raise made[0]
    server, loop = made[0]
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join()
