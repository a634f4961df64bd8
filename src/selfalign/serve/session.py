"""One robot's conversation: from the bytes of a request to the bytes of its reply. Knows nothing of sockets."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.observations import STATE
from selfalign.policy import Policy
from selfalign.serve.batching import Query, Timed
from selfalign.serve.contexts import ContextTable, Embodiment
from selfalign.serve.learning import Learning
from selfalign.serve.metrics import Metrics
from selfalign.serve.protocol import ProtocolError, pack, unpack
from selfalign.serve.requests import Request, RequestError, RequestReader, check_range

log = logging.getLogger(__name__)
MAX_ERROR_CHARS = 2000


class ReplyError(Exception):
    """A request without answer: what the client is told, and how `/metrics` counts it."""

    def __init__(self, text: str, outcome: str):
        super().__init__(text[:MAX_ERROR_CHARS])
        self.outcome = outcome


@dataclass(frozen=True, eq=False)
class Desk:
    """What all conversations share."""

    policy: Policy
    contexts: ContextTable
    reader: RequestReader
    ask: Callable[[Query], Awaitable[Timed[Float[np.ndarray, "H _"]]]]
    metrics: Metrics
    threads: Executor
    """Where requests are decoded and made ready, so that a large one delays nobody else's."""
    learning: Learning | None = None
    """None: nothing is learned."""


class Session:
    """The state of one connection: its embodiment, its noise, and how long the last request took.

    Args:
        desk: what is shared.
        embodiment: whose context requests use that name none; None: the only one there is.
    """

    def __init__(self, desk: Desk, embodiment: str | None = None):
        self._desk, self._embodiment = desk, embodiment
        self._noise = torch.Generator()
        self._noise.seed()
        self._previous_total: float | None = None
        self._trail = None if desk.learning is None else desk.learning.trail()

    async def reply(self, data: bytes | str) -> bytes:
        """Answers one request within the time limit.

        Raises:
            ReplyError: with the text for the client.
        """
        desk, began, name = self._desk, time.perf_counter(), ""
        try:
            async with asyncio.timeout(desk.reader.limits.request_timeout):
                request = await asyncio.get_running_loop().run_in_executor(desk.threads, self._read, data)
                embodiment = self._embodiment_of(request)
                name = embodiment.name
                answer = await self._answer(request, embodiment)
            reply = pack(self._timed(answer, time.perf_counter() - began))
        except Exception as error:
            failure = _failure(error, desk.reader.limits.request_timeout)
            desk.metrics.requests.labels(name, failure.outcome).inc()
            raise failure from error
        self._previous_total = time.perf_counter() - began
        desk.metrics.requests.labels(name, "ok").inc()
        desk.metrics.latency.observe(self._previous_total)
        if self._trail is not None and request.observation is not None:
            self._trail.add(request, embodiment, answer["actions"], self._previous_total)
        return reply

    def _read(self, data: bytes | str) -> Request:
        if isinstance(data, str):
            raise RequestError("requests are binary frames of msgpack, this was a text frame")
        return self._desk.reader.read(unpack(data))

    def _embodiment_of(self, request: Request) -> Embodiment:
        return self._desk.contexts.get(request.embodiment or self._embodiment)

    async def _answer(self, request: Request, embodiment: Embodiment) -> dict[str, Any]:
        if request.reset and request.seed is not None:
            self._noise.manual_seed(request.seed)
        if self._trail is not None:
            if request.reset:
                self._trail.reset()
            self._trail.check(request, embodiment)
        if request.observation is None:
            return {"reset": True, "embodiment": embodiment.name}
        desk = self._desk
        query = await asyncio.get_running_loop().run_in_executor(
            desk.threads, self._prepare, request.observation, embodiment, self._draw()
        )
        timed = await desk.ask(query)
        desk.metrics.forward.observe(timed.seconds)
        desk.metrics.batch.observe(timed.batch)
        timing = {"infer_ms": 1000 * timed.seconds, "batch": timed.batch}
        return {"actions": timed.answer, "embodiment": embodiment.name, "policy_timing": timing}

    def _draw(self) -> Float[Tensor, "H A"]:
        config = self._desk.policy.model.config
        return torch.randn(config.action_horizon, config.action_dim, generator=self._noise)

    def _prepare(self, raw: Mapping[str, Any], embodiment: Embodiment, noise: Tensor) -> Query:
        policy, limits = self._desk.policy, self._desk.reader.limits
        try:
            seen = policy.repack(raw)
            check_range(seen[STATE], embodiment.stats, limits.deviation)
            return Query(policy.repacked_observation(seen, embodiment.stats), embodiment, noise, seen[STATE])
        except ValueError as error:  # whatever the policy says of an observation is the client's to read
            raise RequestError(str(error)) from error

    def _timed(self, answer: dict[str, Any], seconds: float) -> dict[str, Any]:
        timing = {"infer_ms": 1000 * seconds}
        if self._previous_total is not None:
            timing["prev_total_ms"] = 1000 * self._previous_total
        return {**answer, "server_timing": timing}


def _failure(error: Exception, timeout: float) -> ReplyError:
    """What a client may know of an error. Anything unforeseen stays in the log, under a number that both have."""
    if isinstance(error, RequestError | ProtocolError):
        return ReplyError(str(error), "refused")
    if isinstance(error, LookupError) and not isinstance(error, KeyError | IndexError):
        return ReplyError(str(error), "unknown_embodiment")
    if isinstance(error, TimeoutError):
        return ReplyError(f"no answer within {timeout:g} s: the server is overloaded; ask again", "timeout")
    number = uuid.uuid4().hex[:8]
    log.error("request failed (%s)", number, exc_info=error)
    return ReplyError(f"the server failed to answer; its log has the reason under {number}", "failed")


def describe(policy: Policy, contexts: ContextTable, embodiment: str | None, *, learns: bool = False) -> dict[str, Any]:
    """The metadata frame: what a robot must know before it sends its first request."""
    config = policy.model.config
    dims = {name: contexts.get(name).stats for name in contexts.names}
    return {
        "server": "selfalign",
        "fingerprint": policy.fingerprint(),
        "cameras": list(config.cameras),
        "image_size": config.image_size,
        "action_horizon": config.action_horizon,
        "acting": policy.acting.to_dict(),
        "embodiments": {n: {"state_dim": s.state_dim, "action_dim": s.action_dim} for n, s in dims.items()},
        "embodiment": embodiment,
        **({"learns": True} if learns else {}),
    }
