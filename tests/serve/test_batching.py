"""Who shares a forward, and that sharing one changes nothing."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from align.factory import HORIZON, small_policy
from selfalign.serve.batching import Batcher, Query, infer
from selfalign.serve.contexts import ContextTable
from serve.serving import observation, run, write_contexts

# ---- the forward ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return small_policy(cameras=("scene", "wrist"))


@pytest.fixture(scope="module")
def table(policy, tmp_path_factory):
    return ContextTable(policy, write_contexts(policy, tmp_path_factory.mktemp("contexts")))


def query(policy, table, name: str, seed: int, **changes) -> Query:
    """Of a robot with a view, words and noise of its own."""
    raw = {**observation(seed, size=12 + seed), "task": "go " * (1 + seed % 3), **changes}
    noise = torch.randn(HORIZON, 5, generator=torch.Generator().manual_seed(seed))
    return Query(policy.observation(raw, table.get(name).stats), table.get(name), noise, raw["observation.state"])


def test_robots_that_share_a_forward_get_what_they_would_get_alone(policy, table):
    """Two contexts, images of other sizes, prompts of other lengths, one robot with a second camera."""
    names = ["slow", "fast", "fast", "slow", "fast"]
    queries = [query(policy, table, name, seed) for seed, name in enumerate(names)]
    queries[2] = query(
        policy, table, "fast", 2, **{"observation.images.wrist": observation(9)["observation.images.scene"]}
    )
    together = infer(policy, queries, 10)
    for name, answer, q in zip(names, together, queries, strict=True):
        (alone,) = infer(policy, [q], 10)
        scale = table.get(name).stats.action.std
        np.testing.assert_allclose(answer / scale, alone / scale, rtol=0, atol=1e-5)
    assert not np.allclose(together[0], together[3])


def test_the_forward_is_what_the_policy_does(policy, table):
    for name in ("slow", "fast"):
        raw = {**observation(3), "task": "go"}
        seen, noise = policy.observation(raw, table.get(name).stats), torch.randn(HORIZON, 5)
        q = Query(seen, table.get(name), noise, raw["observation.state"])
        (answer,) = infer(policy, [q], 4)
        expected = policy.act(raw, table.get(name).context, noise=q.noise, num_steps=4)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
        assert answer.dtype == np.float32


def test_robots_of_one_body_share_one_context(policy, table, monkeypatch):
    queries = [query(policy, table, "slow", seed) for seed in range(3)]
    seen = []
    sample = policy.model.sample_actions

    def spy(observation, context, **options):
        seen.append(context.batched)
        return sample(observation, context, **options)

    monkeypatch.setattr(policy.model, "sample_actions", spy)
    together = infer(policy, queries, 2)
    mixed = infer(policy, [*queries, query(policy, table, "fast", 4)], 2)
    assert seen == [False, True]
    for a, b in zip(together, mixed, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_nan_of_one_robot_is_not_the_others(policy, table):
    good, bad = query(policy, table, "slow", 0), query(policy, table, "slow", 1)
    bad = dataclasses.replace(bad, noise=bad.noise * torch.nan)
    answers = infer(policy, [good, bad], 2)
    assert np.isfinite(answers[0]).all()
    assert isinstance(answers[1], ValueError) and "NaN or infinite actions" in str(answers[1])


# ---- who shares it -------------------------------------------------------------------------------------------------


class Model:
    """Doubles numbers and keeps the batches it saw."""

    def __init__(self):
        self.batches: list[list[int]] = []

    def __call__(self, queries):
        self.batches.append(list(queries))
        if 13 in queries:
            raise RuntimeError("13 breaks the forward")
        return [ValueError("odd one") if q == 7 else 2 * q for q in queries]


def batched(scenario, **options):
    """Runs `scenario(batcher)` and returns (its result, the batches)."""
    model = Model()

    async def main():
        batcher = Batcher(model, **{"max_batch": 4, "max_wait": 0.05, "askers": lambda: 100, **options})
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            await batcher.stop()

    return run(main()), model.batches


def test_queries_that_come_together_are_answered_together_in_order():
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.ask(n) for n in range(20, 30)))

    answers, batches = batched(scenario)
    assert [a.answer for a in answers] == [2 * n for n in range(20, 30)]
    assert batches == [[20, 21, 22, 23], [24, 25, 26, 27], [28, 29]]
    assert [a.batch for a in answers] == [4] * 8 + [2] * 2


def test_a_lone_query_waits_no_longer_than_the_bound():
    async def scenario(batcher):
        began = asyncio.get_running_loop().time()
        await batcher.ask(1)
        return asyncio.get_running_loop().time() - began

    waited, _ = batched(scenario, max_wait=0.2)
    assert 0.2 <= waited < 5.0


def test_nobody_waits_once_every_robot_has_asked():
    async def scenario(batcher):
        await asyncio.wait_for(asyncio.gather(batcher.ask(1), batcher.ask(2)), 20)

    _, batches = batched(scenario, max_wait=1000.0, askers=lambda: 2)
    assert batches == [[1, 2]]


def test_one_robots_trouble_is_not_the_others():
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.ask(n) for n in (1, 7, 13, 2)), return_exceptions=True)

    answers, _ = batched(scenario)
    assert answers[0].answer == 2 and answers[3].answer == 4
    assert isinstance(answers[1], ValueError) and isinstance(answers[2], RuntimeError)


def test_who_gave_up_takes_no_part():
    async def scenario(batcher):
        gone = asyncio.ensure_future(batcher.ask(5))
        await asyncio.sleep(0)
        gone.cancel()
        return (await batcher.ask(6)).answer

    answer, batches = batched(scenario)
    assert answer == 12 and batches == [[6]]


def test_stopping_tells_who_still_waits():
    async def main():
        batcher = Batcher(Model(), max_batch=4, max_wait=1000.0, askers=lambda: 100)
        batcher.start()
        waiting = asyncio.ensure_future(batcher.ask(1))
        await asyncio.sleep(0.01)
        await batcher.stop()
        with pytest.raises(RuntimeError, match="shutting down"):
            await waiting

    run(main())


@pytest.mark.parametrize("names", [["slow", "fast", "slow"], ["fast", "slow", "slow"], ["slow", "slow", "fast"]])
def test_one_robot_of_another_body_gets_its_own_context_wherever_it_stands(policy, table, names):
    queries = [query(policy, table, name, seed) for seed, name in enumerate(names)]
    for name, together, q in zip(names, infer(policy, queries, 2), queries, strict=True):
        (alone,) = infer(policy, [q], 2)
        scale = table.get(name).stats.action.std
        np.testing.assert_allclose(together / scale, alone / scale, rtol=0, atol=1e-5)
