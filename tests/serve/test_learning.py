"""A server that learns: robots act while steps are kept, contexts are fitted, swapped and taken back by command."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from websockets.sync.client import connect

from align.factory import HORIZON, make_episode, make_play, raw_observation, small_policy
from selfalign.align.offline import AlignConfig, align
from selfalign.online import learner
from selfalign.online.aligner import AlignerError
from selfalign.online.config import LearnConfig
from selfalign.online.drift import DriftConfig
from selfalign.online.experience import Step, to_play
from selfalign.online.jobs import AlignJob, Job, MeasureJob
from selfalign.online.learner import Learner
from selfalign.serve.client import ActionChunkBroker, Client, ServerError
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.learning import Learning
from selfalign.serve.server import PolicyServer, in_background
from serve.serving import observation, robot_context

PLAN = LearnConfig(
    learn_mb=4.0,
    window=6,
    align_min=12,
    align_every=0,
    align_steps=30,
    align_improvement=0.0,
    probation=0,
    drift=DriftConfig(drift_calibration=1, drift_patience=2),
)


class ScriptedAligner:
    """Alignments are real, and computed here; losses are those of a script, then the last one for ever."""

    def __init__(self, policy, losses=(0.2,)):
        self.policy, self.losses, self.jobs = policy, list(losses), []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, job: Job) -> dict:
        self.jobs.append(job)
        if isinstance(job, MeasureJob):
            loss = self.losses.pop(0) if len(self.losses) > 1 else self.losses[0]
            return {"losses": dict.fromkeys(("live", *job.others), loss), "parts": {}, "transitions": 6}
        assert self.gate.wait(60)
        return job.run(self.policy, 512)

    def close(self) -> None:
        self.gate.set()


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture
def contexts(policy, tmp_path):
    robot_context(policy, "slow").save(tmp_path / "contexts" / "slow.safetensors")
    return tmp_path / "contexts"


@pytest.fixture
def serve(policy, contexts, tmp_path):
    """A server that learns, as a context manager."""

    def start(aligner=None, plan: LearnConfig = PLAN, **settings):
        fingerprint = policy.fingerprint()
        learns = Learner(tmp_path / "learned", plan, HORIZON, fingerprint, aligner or ScriptedAligner(policy))
        table = ContextTable(policy, contexts, learns.adopt)
        config = ServeConfig(port=0, num_steps=1, max_wait_ms=1, learning=plan, **settings)
        return in_background(policy, table, config, Learning(learns, policy.model.config.image_size))

    return start


def ask(server: PolicyServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    address = urlsplit(server.address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def status(server: PolicyServer) -> dict:
    code, text = ask(server, "/learn")
    assert code == 200
    return json.loads(text)["embodiments"]["slow"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def steps_kept(server: PolicyServer) -> list[Step]:
    """Those on disk, oldest first."""
    body = server.learning.learner._bodies["slow"]
    return [Step.unpack(payload) for _, payload in body.ring.snapshot().records()]


def drive(client: Client, seed: int, asks: int = 7, execute: int = 2) -> np.ndarray:
    """An episode: the robot asks, executes two actions, and asks again; returns the actions it carried out."""
    episode = make_episode(seed, asks * execute)
    robot, done = ActionChunkBroker(client, execute), []
    robot.reset()
    for frame in range(asks * execute):
        done.append(robot.act(raw_observation(episode, frame)))
    return np.stack(done)


def first_answer(server: PolicyServer) -> np.ndarray:
    with Client(server.address) as client:
        client.reset(seed=5)
        return client.infer(observation())["actions"]


def test_a_drift_is_answered_without_a_restart_and_can_be_taken_back(policy, serve):
    aligner = ScriptedAligner(policy, [0.2, 0.5])
    with serve(aligner) as server:
        before = first_answer(server)
        aligner.gate.clear()
        with Client(server.address) as client:
            assert client.metadata["learns"] is True
            seeds = iter(range(100))
            while not any(isinstance(job, AlignJob) for job in aligner.jobs):
                drive(client, next(seeds))
                until(lambda: status(server)["busy"] != "measuring")
            for _ in range(3):
                drive(client, next(seeds))
            assert status(server)["version"] == 1, "robots act while the alignment is under way"
        aligner.gate.set()
        until(lambda: status(server)["busy"] != "aligning")
        assert status(server)["version"] == 2, status(server)["events"][-1]
        events = [event["kind"] for event in status(server)["events"]]
        assert events[:4] == ["given", "calibrated", "drift began", "accepted"]
        learned = first_answer(server)
        assert np.abs(learned - before).max() > 1e-3
        code, text = ask(server, "/learn/rollback?embodiment=slow", "POST")
        assert (code, json.loads(text)) == (200, {"embodiment": "slow", "version": 1})
        np.testing.assert_array_equal(first_answer(server), before)
        assert ask(server, "/learn/rollback?embodiment=slow&version=2", "POST")[0] == 200
        np.testing.assert_array_equal(first_answer(server), learned)
        metrics = ask(server, "/metrics")[1]
        assert 'selfalign_context_version{embodiment="slow"} 2.0' in metrics
        for kind, count in (("accepted", 1), ("rolled back", 2), ("drift began", 1)):
            assert f'selfalign_events{{embodiment="slow",kind="{kind}"}} {count}.0' in metrics
    with serve() as again:
        np.testing.assert_array_equal(first_answer(again), learned)
        with pytest.raises(ValueError, match="is used by another server"):
            serve()


class Regretted(ScriptedAligner):
    """Every version but the first explains the robot badly."""

    def run(self, job: Job) -> dict:
        if isinstance(job, AlignJob):
            return super().run(job)
        paths = {"live": job.live, **job.others}
        losses = {name: 0.3 if path.stem == "0001" else 0.9 for name, path in paths.items()}
        return {"losses": losses, "parts": {}, "transitions": 6}


def test_a_context_that_turns_out_worse_is_taken_back_by_itself(policy, serve):
    with serve(Regretted(policy), replace(PLAN, probation=4, rollback_patience=2)) as server:
        before = first_answer(server)
        with Client(server.address) as client:
            seeds = iter(range(100))
            for _ in range(3):
                drive(client, next(seeds))
            assert ask(server, "/learn/align?embodiment=slow", "POST")[0] == 200
            until(lambda: status(server)["version"] == 2)
            learned = first_answer(server)
            assert np.abs(learned - before).max() > 1e-3
            while status(server)["version"] == 2:
                drive(client, next(seeds))
                until(lambda: not status(server)["busy"])
        np.testing.assert_array_equal(first_answer(server), before)
        event = status(server)["events"][-1]
        assert (event["kind"], event["about"]["left"], event["about"]["by"]) == ("rolled back", 2, "the server")
        assert [loss for _, loss in status(server)["losses"]][-2:] == [{"live": 0.9, "before": 0.3}] * 2, "patience"


class Dying(ScriptedAligner):
    """Its process is killed in its first job."""

    def run(self, job: Job) -> dict:
        if not self.jobs:
            self.jobs.append(job)
            raise AlignerError("the aligner's process was killed by SIGKILL")
        return super().run(job)


def test_an_aligner_that_dies_changes_nothing_and_the_next_one_goes_on(policy, serve):
    with serve(Dying(policy)) as server:
        before = first_answer(server)
        assert ask(server, "/learn/align?embodiment=slow", "POST")[0] == 200
        until(lambda: [e["kind"] for e in status(server)["events"]] == ["given", "failed"])
        assert status(server)["events"][-1]["about"] == {
            "by": "operator",
            "why": "the aligner's process was killed by SIGKILL",
        }
        np.testing.assert_array_equal(first_answer(server), before)
        with Client(server.address) as client:
            for seed in range(3):
                drive(client, seed)
        assert ask(server, "/learn/align?embodiment=slow", "POST")[0] == 200
        until(lambda: status(server)["version"] == 2)


class Honest(ScriptedAligner):
    """Nothing is scripted."""

    def run(self, job: Job) -> dict:
        return job.run(self.policy, 512)


def move(client: Client, seed: int, shift: float) -> None:
    """An episode of 6 transitions, in which the robot follows a plan of its own and its sensors are off by `shift`."""
    episode = make_episode(seed, 16)
    client.reset()
    for look in range(0, 16, 2):
        raw = raw_observation(episode, look)
        raw["observation.state"] = raw["observation.state"] + np.float32(shift)
        client.infer({**raw, **({"executed": episode.action[look - 2 : look]} if look else {})})


def test_sensors_that_slip_are_noticed_and_learned_by_what_the_losses_really_are(policy, serve, contexts):
    first = align(policy, make_play(12), config=AlignConfig(steps=60), progress=False)
    assert first.verdict.accepted
    first.fitted.with_info(embodiment="slow").save(contexts / "slow.safetensors")
    drift = DriftConfig(drift_calibration=3)
    plan = replace(PLAN, align_min=24, align_steps=60, align_improvement=0.05, probation=9, drift=drift)
    with serve(Honest(policy), plan) as server, Client(server.address) as client:

        def seen() -> list[str]:
            return [event["kind"] for event in status(server)["events"]]

        def news() -> tuple[int, int]:
            return len(status(server)["losses"]), len(seen())

        for seed in range(6):  # each is a window: it is measured before the next begins
            move(client, 1000 + seed, shift=0.0)
            until(lambda done=seed + 1: news()[0] == done)
        assert seen() == ["given", "calibrated"], "a robot that stays as it is is left alone"
        for seed in range(10):
            known = news()
            move(client, 1000 + seed, shift=1.0)
            until(lambda known=known: news() != known and not status(server)["busy"])
        assert seen()[2:4] == ["drift began", "accepted"], status(server)["events"][-1]
        losses = [loss for _, loss in status(server)["losses"]]
        assert min(loss["live"] for loss in losses[6:8]) > 2 * max(loss["live"] for loss in losses[:6])
        both = [loss for loss in losses if "before" in loss]
        assert len(both) >= 2 and all(loss["live"] < 0.95 * loss["before"] for loss in both), "of the same transitions"


def test_steps_are_what_the_robot_saw_and_did(policy, serve):
    with serve() as server, Client(server.address) as client:
        done = [drive(client, seed) for seed in (0, 1)]
        client.infer({**observation(), "executed": 1})
        client.infer({**observation(), "executed": np.ones((3, 3), np.float32)})
        client.infer(observation())  # does not say what it did
        until(lambda: status(server)["buffer"]["steps"] == 17)
        steps = steps_kept(server)
    assert [step.index for step in steps] == [*range(7), *range(9), 0]
    assert len({step.chain for step in steps}) == 3
    for seed in (0, 1):
        mine, episode = steps[7 * seed : 7 * seed + 7], make_episode(seed, 14)
        np.testing.assert_array_equal(np.concatenate([step.executed for step in mine]), done[seed][:12])
        np.testing.assert_array_equal(np.stack([step.state for step in mine]), episode.state[::2])
        play = to_play(mine, HORIZON, "slow")
        np.testing.assert_array_equal(play.episodes[0].images["scene"], episode.images["scene"][::2])
    assert [len(step.executed) for step in steps[14:]] == [1, 3, 0]


def test_what_cannot_have_been_executed_is_refused(serve):
    with serve() as server:
        for executed, words in (
            (9, "executed: 9 actions, but the last chunk had 4"),
            (np.ones((2, 5), np.float32), "executed has 5 dimensions, an action of this embodiment 3"),
            (np.full((2, 3), np.nan, np.float32), "as floats .* without NaN"),
            (0, "executed must be the number of actions"),
            (True, "executed must be the number of actions"),
        ):
            with Client(server.address) as client:
                client.infer(observation())
                with pytest.raises(ServerError, match=words):
                    client.infer({**observation(), "executed": executed})


def test_robots_that_do_not_say_what_they_execute_can_be_spoken_for(serve):
    """As PyPI's openpi-client, whose broker executes a fixed number of actions."""
    with serve(plan=replace(PLAN, executed=2)) as server, Client(server.address) as client:
        first = client.infer(observation())["actions"]
        for _ in range(2):
            client.infer(observation())
        until(lambda: status(server)["buffer"]["steps"] == 3)
        np.testing.assert_array_equal(steps_kept(server)[1].executed, first[:2])
        assert status(server)["transitions"] == 1


def test_a_server_that_does_not_learn_is_as_it_was(policy, contexts):
    with in_background(policy, ContextTable(policy, contexts), ServeConfig(port=0, num_steps=1)) as server:
        with Client(server.address) as client:
            assert "learns" not in client.metadata
            drive(client, 0)
            with pytest.raises(ServerError, match="the request has unknown 'executed'"):
                client.infer({**observation(), "executed": 2})
        for path, method in (("/learn", "GET"), ("/dashboard", "GET"), ("/learn/align?embodiment=slow", "POST")):
            assert ask(server, path, method)[0] >= 400


def test_commands_want_a_post_a_body_and_nobody_from_elsewhere(serve):
    with serve() as server:
        here = urlsplit(server.address).netloc
        assert ask(server, "/learn/rollback?embodiment=slow") == (405, "send /learn/rollback as POST\n")
        assert ask(server, "/learn", "DELETE") == (405, "send /learn as GET\n")
        for path, words in (
            ("/learn/align?embodiment=sloth", "nothing is learned of 'sloth'; learning are slow"),
            ("/learn/rollback?embodiment=slow", "version 1 is the first of 'slow'"),
            ("/learn/rollback?embodiment=slow&version=7", "has no version 7"),
            ("/learn/rollback?embodiment=slow&version=x", "a version is a number, got 'x'"),
        ):
            code, text = ask(server, path, "POST")
            assert code == 400 and words in text
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example:8000"}, {"Origin": "null"}):
            for path, method in (("/learn", "GET"), ("/learn/align?embodiment=slow", "POST")):
                assert ask(server, path, method, **headers)[0] == 403
        assert ask(server, "/learn", Origin=f"http://{here}")[0] == 200
        code, text = ask(server, "/dashboard")
        assert code == 200 and text.startswith("<!doctype html>")


def test_no_other_page_may_frame_the_dashboard(serve):
    """Its buttons could be clicked without the operator knowing."""
    with serve() as server, urlopen(server.address.replace("ws://", "http://") + "/dashboard", timeout=60) as response:
        policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
        assert policy["frame-ancestors"] == policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert response.headers["Cache-Control"] == "no-store"


def test_keys_guard_what_is_learned_and_commands(serve, tmp_path):
    (tmp_path / "keys").write_text("a-key-that-nobody-guesses\n")
    key = {"Authorization": "Api-Key a-key-that-nobody-guesses"}
    with serve(api_keys=tmp_path / "keys") as server:
        assert ask(server, "/learn")[0] == ask(server, "/learn/align?embodiment=slow", "POST")[0] == 401
        assert ask(server, "/learn", **key)[0] == 200
        assert ask(server, "/learn/align?embodiment=slow", "POST", **key)[0] == 200
        assert ask(server, "/learn", Origin="http://evil.example", **key)[0] == 403
        assert ask(server, "/dashboard")[0] == 200, "the page itself tells nothing"


def test_an_alignment_on_request_without_steps_is_told_in_the_journal(serve):
    with serve() as server:
        assert ask(server, "/learn/align?embodiment=slow", "POST")[0] == 200
        until(lambda: [e["kind"] for e in status(server)["events"]] == ["given", "failed"])
        assert "slow has no transition" in status(server)["events"][-1]["about"]["why"]
        assert first_answer(server).shape == (4, 3)


def test_a_disk_slower_than_the_robots_loses_steps_and_delays_nobody(policy, serve, monkeypatch):
    monkeypatch.setattr(learner, "QUEUE", 3)
    gate = threading.Event()
    real = learner.LearningBody.add
    monkeypatch.setattr(learner.LearningBody, "add", lambda self, step: (gate.wait(60), real(self, step)))
    with serve() as server:
        with connect(server.address + "/?embodiment=slow", compression=None) as socket:
            assert socket.recv()
        with Client(server.address) as client:
            for _ in range(8):
                client.infer(observation())
        assert status(server)["lost_steps"] == 5
        gate.set()
        until(lambda: status(server)["buffer"]["steps"] == 3)
