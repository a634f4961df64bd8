"""A live server with a story to show, and its page in headless Chromium.

    python tests/serve/dashboard.py docs/assets/dashboard.png

The policy is the tests' small one with random weights, and so are its robots; losses are scripted, alignments real.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, pytest's pythonpath is not there

from align.factory import HORIZON, make_episode, raw_observation, small_policy
from selfalign.online.config import LearnConfig
from selfalign.online.drift import DriftConfig
from selfalign.online.jobs import AlignJob, Job
from selfalign.online.learner import Learner
from selfalign.serve.client import ActionChunkBroker, Client
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.learning import Learning
from selfalign.serve.server import PolicyServer, in_background
from serve.serving import robot_context

PLAN = LearnConfig(
    learn_mb=1.0,
    window=6,
    align_min=12,
    align_every=0,
    align_improvement=0.0,
    drift=DriftConfig(drift_calibration=2, drift_patience=2),
)
_SECONDS = 60.0
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
_FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server")


class Bumped:
    """An aligner in this process: the first version explains the robot until it is `moved`, the others after it. From
    the second alignment on, nothing is good enough."""

    def __init__(self, policy):
        self.policy, self.moved, self.alignments = policy, False, 0
        self._rng = np.random.default_rng(0)

    def run(self, job: Job) -> dict:
        if isinstance(job, AlignJob):
            self.alignments += 1
            wanted = 0.0 if self.alignments == 1 else 0.99
            return replace(job, min_improvement=wanted).run(self.policy, 512)
        paths = {"live": job.live, **job.others}
        losses = {name: self._loss(path) for name, path in paths.items()}
        return {"losses": losses, "parts": {}, "transitions": PLAN.window}

    def _loss(self, path: Path) -> float:
        fits = not self.moved or Path(path).stem != "0001"
        return (0.3 if fits else 0.7) * float(1 + 0.05 * self._rng.normal())

    def close(self) -> None:
        """Nothing runs elsewhere."""


@contextlib.contextmanager
def server_with_a_story(folder: Path, moving: str = "arm_1", quiet: str = "arm_2") -> Iterator[PolicyServer]:
    """Two robots act; one is bumped, aligned to, aligned to again in vain, taken back and forth."""
    policy = small_policy()
    for name in (moving, quiet):
        robot_context(policy, "slow").with_info(embodiment=name).save(folder / "contexts" / f"{name}.safetensors")
    aligner = Bumped(policy)
    learner = Learner(folder / "learned", PLAN, HORIZON, policy.fingerprint(), aligner)
    table = ContextTable(policy, folder / "contexts", learner.adopt)
    config = ServeConfig(port=0, num_steps=1, max_wait_ms=1, learning=PLAN)
    with in_background(policy, table, config, Learning(learner, policy.model.config.image_size)) as server:
        _act(server, quiet, windows=4)
        _act(server, moving, windows=6)
        aligner.moved = True
        seen = len(status(server)[moving]["losses"])
        while status(server)[moving]["version"] == 1:
            assert seen + 12 > len(status(server)[moving]["losses"]), "no alignment was accepted"
            _act(server, moving, windows=1)
        _act(server, moving, windows=4)
        ask(server, "/learn/align?embodiment=" + quote(moving), "POST")
        _until(lambda: "rejected" in [event["kind"] for event in status(server)[moving]["events"]])
        for version in (1, 2):
            ask(server, f"/learn/rollback?embodiment={quote(moving)}&version={version}", "POST")
        _act(server, moving, windows=3)
        with Client(server.address, embodiment=moving), Client(server.address, embodiment=quiet):
            yield server


def ask(server: PolicyServer, path: str, method: str = "GET") -> str:
    address = urlsplit(server.address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=_SECONDS)
    connection.request(method, path)
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200, text
    return text


def status(server: PolicyServer) -> dict:
    return json.loads(ask(server, "/learn"))["embodiments"]


def dom(server: PolicyServer, profile: Path) -> str:
    """The page as Chromium has rendered it."""
    return _chromium(profile, "--dump-dom", _page(server))


def screenshot(server: PolicyServer, profile: Path, out: Path, size: tuple[int, int] = (1060, 812)) -> None:
    """Writes a PNG of the page."""
    _chromium(profile, f"--window-size={size[0]},{size[1]}", f"--screenshot={out}", _page(server))


def _chromium(profile: Path, *args: str) -> str:
    # Virtual time runs ahead while nothing is being fetched: the page has asked and been answered by the end of it.
    command = ["chromium", *_FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=3000", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=5 * _SECONDS, check=True).stdout


def _page(server: PolicyServer) -> str:
    return server.address.replace("ws://", "http://") + "/dashboard"


def _act(server: PolicyServer, name: str, windows: int) -> None:
    """Episodes of a robot, until so many more windows were measured."""
    wanted = len(status(server)[name]["losses"]) + windows
    with Client(server.address, embodiment=name) as client:
        robot = ActionChunkBroker(client, execute=2)
        for seed in range(100):
            robot.reset()
            episode = make_episode(seed, length=16)
            for frame in range(len(episode)):
                robot.act(raw_observation(episode, frame))
            _until(lambda: not status(server)[name]["busy"])
            if len(status(server)[name]["losses"]) >= wanted:
                return
    raise AssertionError(f"{windows} windows never came")


def _until(condition) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, server_with_a_story(Path(temporary)) as live:
        screenshot(live, Path(temporary) / "profile", Path(sys.argv[1]).resolve())
    print(f"{sys.argv[1]}: {Path(sys.argv[1]).stat().st_size / 1000:.0f} kB")
