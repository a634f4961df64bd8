"""Load on the policy server over loopback: many clients at once, batched against unbatched, and beside an alignment.

    python benchmarks/serve_load.py --clients 64 --seconds 60 --out benchmarks/results/serve_load.json

Two servers share one model; one batches, the other does not. Load goes to them by turns, so that a busy machine slows
both; in every third turn the batching one is under load while the process that `selfalign serve --learn` starts aligns
without a pause. Clients live in a process of their own, ask as soon as they are answered (or `--rate` times a second),
and belong to several embodiments.
"""

import asyncio
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from busy_aligner import busy_aligner

from selfalign import presets
from selfalign.checkpoint import load
from selfalign.data.normalize import NormStats
from selfalign.model.policy import VLA
from selfalign.online.config import AlignerConfig
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.serve.client import AsyncClient
from selfalign.serve.config import Limits, ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.server import PolicyServer, in_background

CASES = ("unbatched", "batched", "aligning")


@dataclass(frozen=True)
class Config:
    """How much load, and on what."""

    clients: int = 64
    seconds: float = 60.0
    """Of load in each of the three cases, over all rounds."""
    rounds: int = 3
    """Turns of each case."""
    rate: float | None = None
    """Requests a second of each client, as far as it is answered; None: as many as it is answered."""
    embodiments: int = 8
    """Contexts that the clients spread over."""
    max_batch: int = 64
    max_wait_ms: float = 5.0
    num_steps: int = 10
    checkpoint: Path | None = None
    """None: the tiny preset with random weights, which takes as long."""
    threads: int = 2
    """Of the servers' computation."""
    aligner: AlignerConfig = field(default_factory=AlignerConfig)
    """Of the process that aligns in every third turn."""
    align_steps: int = 100
    """Of each of its alignments."""
    seed: int = 0
    out: Path | None = None


@dataclass
class Answers:
    """What one client was told."""

    seconds: list[float] = field(default_factory=list)
    """Until each answer."""
    batches: list[int] = field(default_factory=list)
    """How many requests each answer was computed with."""
    late: int = 0
    """Answers that came after the time was over: they are not counted per second."""
    errors: list[str] = field(default_factory=list)


def make_policy(config: Config) -> Policy:
    """The checkpoint's, or one with random weights; with statistics of random numbers."""
    torch.manual_seed(config.seed)
    given = config.checkpoint
    policy = Policy.from_model(VLA(presets.get("tiny")).eval()) if given is None else load(given)
    rng, sizes = np.random.default_rng(config.seed), policy.model.config
    stats = NormStats.from_arrays(rng.normal(size=(100, sizes.state_dim)), rng.normal(size=(100, sizes.action_dim)))
    return Policy(policy.model, policy.tokenizer, policy.settings, stats)


def make_contexts(policy: Policy, config: Config) -> ContextTable:
    """So many bodies: contexts around the prior."""
    assert policy.stats is not None
    prior = policy.model.prior().detach()
    prior = prior.with_info(fingerprint=policy.fingerprint(), norm_stats=policy.stats.to_dict())
    table = ContextTable(policy)
    for number in range(config.embodiments):
        table.swap(f"body{number}", prior.perturbed(1.0, generator=torch.Generator().manual_seed(number)))
    return table


async def ask_for(address: str, embodiment: str, seed: int, until: float, rate: float | None) -> Answers:
    """Asks until the time is over."""
    answers = Answers()
    rng = np.random.default_rng(seed)
    async with AsyncClient(address, embodiment=embodiment) as client:
        told = client.metadata
        side, dim = told["image_size"], told["embodiments"][embodiment]["state_dim"]
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        observation: dict[str, Any] = {f"observation.images.{camera}": image for camera in told["cameras"]}
        observation |= {"observation.state": rng.normal(size=dim).astype(np.float32), "task": "reach the red cube"}
        while time.monotonic() < until:
            if rate is not None:  # at moments drawn at random, else all clients ask at once for ever
                await asyncio.sleep(rng.uniform(0.5, 1.5) / rate)
            began = time.perf_counter()
            try:
                answer = await client.infer(observation)
            except (RuntimeError, OSError) as error:
                answers.errors.append(str(error))
                await asyncio.sleep(0.1)  # a server that refuses at once is not to be stormed
                continue
            answers.late += time.monotonic() > until
            answers.seconds.append(time.perf_counter() - began)
            answers.batches.append(answer["policy_timing"]["batch"])
    return answers


def storm(address: str, clients: int, embodiments: int, duration: float, rate: float | None = None) -> list[Answers]:
    """All clients at once, in this process; the answers of each."""

    async def main() -> list[Answers]:
        until = time.monotonic() + duration
        bodies = [f"body{n % embodiments}" for n in range(clients)]
        return await asyncio.gather(*(ask_for(address, body, n, until, rate) for n, body in enumerate(bodies)))

    return asyncio.run(main())


def summary(clients: list[Answers], duration: float) -> dict[str, Any]:
    seconds = [second for answers in clients for second in answers.seconds]
    batches = [size for answers in clients for size in answers.batches]
    errors = [error for answers in clients for error in answers.errors]
    if not seconds:
        raise RuntimeError(f"none of {len(errors)} requests was answered; the first: {errors[:3]}")
    p50, p90, p99 = (round(1000 * float(q), 2) for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
    return {
        "requests": len(seconds),
        "errors": len(errors),
        "first_errors": errors[:3],
        "per_second": round((len(seconds) - sum(answers.late for answers in clients)) / duration, 2),
        "milliseconds": {"p50": p50, "p90": p90, "p99": p99, "max": round(1000 * max(seconds), 2)},
        "mean_batch": round(float(np.mean(batches)), 2),
    }


def main(config: Config) -> dict[str, Any]:
    torch.set_num_threads(config.threads)
    watch, policy = Stopwatch(), make_policy(config)
    table = make_contexts(policy, config)
    limits = Limits(connections=2 * config.clients, request_timeout=120.0, ping_interval=120.0)

    def serve(max_batch: int):
        wait = config.max_wait_ms if max_batch > 1 else 0.0
        settings = ServeConfig(port=0, max_batch=max_batch, max_wait_ms=wait, num_steps=config.num_steps, limits=limits)
        return in_background(policy, table, settings)

    results: dict[str, list[Answers]] = {case: [] for case in CASES}
    turn = config.seconds / config.rounds
    busy = busy_aligner(policy, config.aligner, config.align_steps, config.seed)
    with serve(1) as single, serve(config.max_batch) as many, busy as aligner:
        servers: dict[str, PolicyServer] = {"unbatched": single, "batched": many, "aligning": many}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for server in (single, many):  # warms up the model, the sockets and the other process
                pool.submit(storm, server.address, 2, config.embodiments, 0.5).result()
            for _ in range(config.rounds):
                for case, server in servers.items():
                    with aligner.working() if case == "aligning" else nullcontext():
                        arguments = server.address, config.clients, config.embodiments, turn, config.rate
                        results[case] += pool.submit(storm, *arguments).result()
    report = {
        "settings": json.loads(json.dumps({k: v for k, v in vars(config).items() if k != "out"}, default=_plain)),
        **{name: summary(clients, config.seconds) for name, clients in results.items()},
        "alignments": {"finished": len(aligner.seconds), "seconds": aligner.seconds},
        "provenance": provenance(watch.seconds),
    }
    p99 = {case: report[case]["milliseconds"]["p99"] for case in CASES}
    report["p99_ratio"] = {
        "batched to unbatched": round(p99["batched"] / p99["unbatched"], 3),
        "aligning to batched": round(p99["aligning"] / p99["batched"], 3),
    }
    for name in results:
        print(name, report[name])
    print("p99", report["p99_ratio"])
    if config.out is not None:
        print(f"Written to {write_json(config.out, report)}")
    return report


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else vars(value)


if __name__ == "__main__":
    main(tyro.cli(Config, config=(tyro.conf.OmitArgPrefixes,)))
