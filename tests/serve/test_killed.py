"""A server's learning, killed with `kill -9` from outside while it writes steps, saves contexts and swaps them."""

import itertools
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from align.factory import HORIZON, small_policy
from selfalign.model.context import EmbodimentContext
from selfalign.online.config import LearnConfig
from selfalign.online.experience import Step
from selfalign.online.jobs import AlignJob, Job
from selfalign.online.learner import Learner
from selfalign.serve.client import Client
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.server import in_background
from serve.serving import observation, robot_context

LIVES = 100
PLAN = LearnConfig(learn_mb=1.0, window=10**6, align_every=0, keep_versions=4)
REPORT = struct.Struct("<II")


class Ready:
    """An aligner that has the next context at hand: that of an odd version is another one than that of an even one."""

    def __init__(self, contexts: list[EmbodimentContext]):
        self._contexts = contexts

    def run(self, job: Job) -> dict:
        assert isinstance(job, AlignJob)
        newest = max(int(path.stem) for path in job.live.parent.glob("[0-9]*.safetensors"))  # it may not be in use
        self._contexts[(newest + 1) % 2].save(job.out)
        return {"accepted": True, "verdict": {"text": "made up"}}

    def close(self) -> None:
        """Nothing runs elsewhere."""


def step(life: int, index: int) -> Step:
    action = np.full((0 if index == 0 else 2, 3), index, np.float32)
    return Step(f"life {life}", index, float(life), {"scene": b"no picture"}, np.full(3, index, np.float32), action)


class Server:
    """What of a server writes files: its learner, and the contexts that it serves."""

    def __init__(self, folder: Path):
        self.folder, self.policy = folder, small_policy()
        self.contexts = [robot_context(self.policy, "slow", seed) for seed in (0, 1)]
        self.contexts[1].save(folder / "contexts" / "slow.safetensors")

    @contextmanager
    def started(self) -> Iterator[tuple[Learner, ContextTable]]:
        learner = Learner(self.folder / "learned", PLAN, HORIZON, self.policy.fingerprint(), Ready(self.contexts))
        try:
            yield learner, ContextTable(self.policy, self.folder / "contexts", learner.adopt)
        finally:
            learner.stop()

    def live(self, life: int, pipe: int) -> None:
        """For ever: steps are written by one thread, contexts saved and swapped by another. Tells what was done."""
        with self.started() as (learner, table):
            learner.start(table.swap)
            body = learner._bodies["slow"]
            first = body.ring.end
            for index in itertools.count():
                served = table.get("slow").context
                learner.record("slow", lambda index=index: step(life, index))
                learner.align_now("slow")
                while body.ring.end <= first + index or table.get("slow").context is served:
                    time.sleep(1e-4)
                os.write(pipe, REPORT.pack(body.ring.end - first, body.versions.current))

    def killed(self, life: int, reports: int, seconds: float) -> tuple[int, int]:
        """A life that is killed so many seconds after so many reports; its last one."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                self.live(life, writer)
            except BaseException as error:
                sys.__stderr__.write(f"{error!r}\n")
            os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read(REPORT.size * reports)
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            data += pipe.read()
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended before it was killed"
        whole = len(data) // REPORT.size * REPORT.size
        return REPORT.unpack(data[whole - REPORT.size : whole]) if whole else (0, 0)


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> Server:
    return Server(tmp_path_factory.mktemp("server"))


def same(a: EmbodimentContext, b: EmbodimentContext) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def test_killed_at_100_random_moments_nothing_that_was_done_is_lost(lived):
    rng, version, end = np.random.default_rng(0), 1, 0
    for life in range(LIVES):
        written, swapped = lived.killed(life, int(rng.integers(0, 4)), float(rng.uniform(0, 0.03)))
        with lived.started() as (learner, table):
            status = learner.status()["slow"]
            assert status["version"] >= max(swapped, version), "an accepted context is in use again"
            version = status["version"]
            assert same(table.get("slow").context, lived.contexts[version % 2]), "bit for bit"
            assert status["events"][-1]["version"] == version
            ring = learner._bodies["slow"].ring
            records = [payload for _, payload in ring.snapshot().records(since=end)]
            assert len(records) == ring.end - end >= written
            assert records == [step(life, index).pack() for index in range(len(records))]
            end = ring.end
    assert version > LIVES / 4, "contexts were swapped all the time"


def test_afterwards_a_server_answers_as_that_context_does(lived):
    with lived.started() as (learner, table):
        version = learner.status()["slow"]["version"]
        config = ServeConfig(port=0, num_steps=2, max_wait_ms=1)
        with in_background(lived.policy, table, config) as server, Client(server.address) as client:
            client.reset(seed=5)
            answer = client.infer(observation())["actions"]
    noise = torch.randn(HORIZON, 5, generator=torch.Generator().manual_seed(5))
    expected = lived.policy.act(observation(), lived.contexts[version % 2], noise=noise, num_steps=2)
    np.testing.assert_array_equal(answer, expected)
