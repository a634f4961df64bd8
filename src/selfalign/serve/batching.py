"""Many robots, one forward: requests that come close together are answered together, each with its own W.

`Batcher` decides who shares a forward and knows nothing of models; `infer` is the forward and knows nothing of time.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy, concatenate
from selfalign.serve.contexts import Embodiment
from selfalign.types import Observation

Query_ = TypeVar("Query_")
Answer_ = TypeVar("Answer_")


# ---- the forward ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Query:
    """One robot's question, ready for the model."""

    observation: Observation
    """A batch of one."""
    embodiment: Embodiment
    noise: Float[Tensor, "H A"]
    state: Float[np.ndarray, " S"]
    """As `Policy.repack` gives it."""


def infer(policy: Policy, queries: Sequence[Query], num_steps: int) -> list[Float[np.ndarray, "H _"] | ValueError]:
    """Each robot's next H actions in its own units, from one forward; or what is wrong with them.

    What a robot gets does not depend on who shares its forward, but for rounding.
    """
    observation = concatenate(_same_prompt_length([query.observation for query in queries]))
    acting = policy.acting
    noise = acting.temperature * torch.stack([query.noise for query in queries]).to(policy.device)
    actions = policy.model.sample_actions(
        observation, _contexts([query.embodiment.context for query in queries]), noise=noise, num_steps=num_steps
    )
    rows = actions.float().cpu().numpy()
    return [_in_robot_units(policy, row, query) for row, query in zip(rows, queries, strict=True)]


def _same_prompt_length(observations: Sequence[Observation]) -> list[Observation]:
    """Prompts padded to the longest."""
    length = max(o.tokens.shape[1] for o in observations)

    def pad(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, length - x.shape[1]))

    return [replace(o, tokens=pad(o.tokens), token_mask=pad(o.token_mask)) for o in observations]


def _contexts(contexts: Sequence[EmbodimentContext]) -> EmbodimentContext:
    """One for all samples where they share it (a matrix product instead of many), else one for each."""
    shared = all(context is contexts[0] for context in contexts)
    return contexts[0] if shared else EmbodimentContext.stack(contexts)


def _in_robot_units(
    policy: Policy, row: Float[np.ndarray, "H A"], query: Query
) -> Float[np.ndarray, "H _"] | ValueError:
    try:
        return policy.in_robot_units(row, query.embodiment.stats, query.state, policy.acting.speed)
    except ValueError as error:  # the others that share the forward are answered
        return error


# ---- who shares it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Query_, Answer_]):
    query: Query_
    answer: "asyncio.Future[Timed[Answer_]]"
    since: float


@dataclass(frozen=True)
class Timed(Generic[Answer_]):
    """An answer and how it came about."""

    answer: Answer_
    seconds: float
    """Of the forward."""
    batch: int
    """Requests that shared it."""


class Batcher(Generic[Query_, Answer_]):
    """Dynamic batching with a bound on the wait.

    A forward starts when as many requests wait as fit into one, or as there are robots to ask, or when the first of
    them has waited `max_wait`. While it runs the next ones gather, so under load batches form without waiting.

    Args:
        forward: answers some queries in their order, in a thread of its own; an exception in an answer's place is for
            that query alone. If it raises, its queries are tried one by one: one robot's trouble is not the others'.
        max_batch: most queries of one forward.
        max_wait: seconds.
        askers: how many could ask at the moment.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Query_]], Sequence[Answer_ | Exception]],
        *,
        max_batch: int,
        max_wait: float,
        askers: Callable[[], int],
    ):
        self._forward, self._max_batch, self._max_wait, self._askers = forward, max_batch, max_wait, askers
        self._waiting: deque[_Waiting[Query_, Answer_]] = deque()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Must be called in the event loop that asks."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends the loop; whoever still waits gets a `RuntimeError`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(RuntimeError("the server is shutting down"))
        self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ask(self, query: Query_) -> Timed[Answer_]:
        """The answer to one query. Cancelled before its forward began, it takes no part in it.

        Raises:
            Exception: what the forward raised for this query.
        """
        answer: asyncio.Future[Timed[Answer_]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(query, answer, time.monotonic()))
        self._arrival.set()
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [waiting for waiting in await self._next_batch() if not waiting.answer.done()]
            if not batch:
                continue
            began = time.monotonic()
            try:
                answers = await loop.run_in_executor(self._thread, self._answers, [waiting.query for waiting in batch])
            except asyncio.CancelledError:
                self._waiting.extend(batch)  # `stop` tells them
                raise
            seconds = time.monotonic() - began
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(Timed(answer, seconds, len(batch)))

    async def _next_batch(self) -> list[_Waiting[Query_, Answer_]]:
        while not self._waiting:
            await self._next_arrival(None)
        while len(self._waiting) < min(self._max_batch, self._askers()):
            left = self._waiting[0].since + self._max_wait - time.monotonic()
            if left <= 0:
                break
            await self._next_arrival(left)
        return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    async def _next_arrival(self, timeout: float | None) -> None:
        self._arrival.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._arrival.wait()
        except TimeoutError:
            pass

    def _answers(self, queries: Sequence[Query_]) -> Sequence[Answer_ | Exception]:
        try:
            answers = self._forward(queries)
            if len(answers) != len(queries):
                raise RuntimeError(f"the forward gave {len(answers)} answers to {len(queries)} queries")
            return answers
        except Exception as error:
            return [error] if len(queries) == 1 else [self._answers([query])[0] for query in queries]
