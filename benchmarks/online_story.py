"""A robot whose cameras are moved while it works, and a server that notices and learns, without a restart.

    python benchmarks/online_story.py --real-time --out benchmarks/results/online_story.json --page online_story.html

A simulated robot has played and been aligned. It acts over the WebSocket, episode after episode. Then its cameras are
put elsewhere: success falls, the drift monitor sees the play loss rise, an alignment starts from the robot's own
transitions, its context is swapped in, and success comes back. The robot is told nothing, and nothing is restarted.
"""

import html
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from selfalign.align.offline import AlignConfig, align
from selfalign.bench.stats import Interval, wilson
from selfalign.bench.subject import collect_play
from selfalign.checkpoint import load
from selfalign.model.files import write_atomically
from selfalign.online.body import CALIBRATED
from selfalign.online.config import LearnConfig
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.serve.client import ActionChunkBroker, Client
from selfalign.serve.config import Limits, ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.learning import Learning
from selfalign.serve.server import PolicyServer, in_background
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.envs import BodyEnv
from selfalign.sim.tasks import EPISODE_STEPS, Kind

NAME = "robot"
PHASES = ("before", "moved", "learned")
TOLD = {"before": "before", "moved": "cameras moved, old context", "learned": "after the server has learned"}
Phase = Literal["before", "moved", "learned"]
TICK = 60
"""Seconds between the numbers below the figure."""
PLACES = 16
"""Places of cameras that no training has seen, of which the farthest from the first one is where they are put."""


@dataclass(frozen=True)
class Config:
    """One robot, one bump. In real time, about 10 minutes at most with the defaults."""

    checkpoint: Path = Path("checkpoints/tiny")
    task: Kind = "reach"
    play: int = 20
    """Trajectories of play that the first context is aligned to."""
    play_length: int = 50
    before: int = 40
    """Episodes before the cameras are moved, at least: more until what is usual is known."""
    patience: int = 100
    """Most episodes to wait for that, and again between the move and an accepted context."""
    after: int = 40
    """Episodes with the new context."""
    moved: Literal["both", "scene"] = "both"
    """Cameras that are put elsewhere; with `scene`, the one on the hand still shows the way."""
    steps: int | None = None
    """Control steps of an episode; None: as many as the task has."""
    execute: int = 4
    """Actions of a chunk that the robot carries out."""
    num_steps: int = 10
    real_time: bool = False
    """Act at the robot's 20 Hz; else as fast as simulator and server go."""
    threads: int = 1
    """Of the server's computation, so that a core is left for the aligner."""
    seed: int = 0
    learning: LearnConfig = field(default_factory=LearnConfig)
    out: Path | None = None
    page: Path | None = None
    """HTML file with the figure."""


@dataclass(frozen=True)
class Episode:
    """One episode as the robot met it."""

    phase: Phase
    success: bool
    version: int
    """Of the context, at its end."""
    drift: str
    finished: float
    """Seconds since the first episode began."""


def bodies(config: Config) -> tuple[BodySpec, BodySpec]:
    """A body that no training has seen, and the same with its cameras elsewhere, where no training has seen any."""
    body, *others = sample_bodies(1 + PLACES, config.seed, "heldout", "camera")
    other = max(others, key=lambda other: abs(other.camera.azimuth - body.camera.azimuth))
    wrist = other.wrist if config.moved == "both" else body.wrist
    return body, replace(body, camera=other.camera, wrist=wrist)


class Robot:
    """Acts over the WebSocket and keeps a diary."""

    def __init__(self, config: Config, body: BodySpec, server: PolicyServer, client: Client):
        self.config, self.server, self.client = config, server, client
        self.env = BodyEnv(body, (config.task,), image_size=client.metadata["image_size"])
        self.broker = ActionChunkBroker(client, config.execute)
        self.diary: list[Episode] = []
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def move_cameras(self, body: BodySpec) -> None:
        """From the next episode on it is this body, whose cameras alone are others."""
        self.env.body = body
        self.env.sim.mount_wrist(body.wrist)

    def status(self) -> dict[str, Any]:
        assert self.server.learning is not None
        return self.server.learning.learner.status()[NAME]

    def episode(self, phase: Phase) -> Episode:
        """One more; its scene and noise depend on the seed and its number."""
        seed = 10_000 * self.config.seed + len(self.diary)
        self.broker.reset()
        self.client.reset(seed=seed)
        observation, info = self.env.reset(seed=seed)
        for _ in range(self.config.steps or EPISODE_STEPS[self.config.task]):
            due = time.monotonic() + 0.05
            observation, _, _, _, info = self.env.step(self.broker.act(observation))
            if self.config.real_time:
                time.sleep(max(0.0, due - time.monotonic()))
        status = self.status()
        done = Episode(phase, bool(info["success"]), status["version"], status["drift"], self.seconds)
        self.diary.append(done)
        word = "done" if done.success else "not done"
        print(f"{len(self.diary):4d} {phase:8s} {word:9s} context {done.version}, {done.drift}", flush=True)
        return done


def live(config: Config, robot: Robot, moved: BodySpec) -> dict[str, float]:
    """The story; returns when what happened, in seconds since the first episode began."""
    for count in range(config.before + config.patience):
        if robot.episode("before").drift != "calibrating" and count + 1 >= config.before:
            break
    else:
        raise RuntimeError("what is usual was not known in time: the aligner is too slow for these settings")
    robot.move_cameras(moved)
    when = {"moved": robot.seconds}
    first = robot.status()["version"]
    for _ in range(config.patience):
        if robot.episode("moved").drift == "drifted":
            when.setdefault("drift", robot.seconds)
        if robot.status()["version"] > first:
            when["accepted"] = robot.seconds
            break
    for _ in range(config.after if "accepted" in when else 0):
        robot.episode("learned")
    return when


def tell(config: Config, policy: Policy, folder: Path) -> dict[str, Any]:
    """Prepares robot and server, lives the story, and reports it."""
    body, moved = bodies(config)
    cameras = {name: {"before": of(body), "after": of(moved)} for name, of in _CAMERAS.items()}
    play = collect_play(policy, body, config.play, config.play_length, config.seed)
    first = align(policy, play, config=AlignConfig(steps=config.learning.align_steps), progress=False)
    print(f"the first context: {first.verdict}", flush=True)
    first.fitted.save(folder / "contexts" / f"{NAME}.safetensors")
    torch.set_num_threads(config.threads)
    settings = ServeConfig(
        checkpoint=config.checkpoint,
        port=0,
        num_steps=config.num_steps,
        learn=folder / "learned",
        learning=config.learning,
        limits=Limits(request_timeout=120.0, ping_interval=120.0),
    )
    learning = Learning.build(policy, settings)
    table = ContextTable(policy, folder / "contexts", learning.learner.adopt)
    began = time.time()
    with in_background(policy, table, settings, learning) as server, Client(server.address, timeout=120.0) as client:
        robot = Robot(config, body, server, client)
        when = live(config, robot, moved)
        status = learning.status(connections=1)["embodiments"][NAME]
        robot.env.close()
    return {
        "body": body.to_dict(),
        "cameras": cameras,
        "first_context": first.verdict.to_dict(),
        "success": success(robot.diary),
        "seconds": when,
        "episodes": [vars(episode) for episode in robot.diary],
        "losses": [[round(at - began, 2), losses] for at, losses in status["losses"]],
        "usual_loss": [event["about"] for event in status["events"] if event["kind"] == CALIBRATED],
        "latency_ms": status["latency_ms"],
        "events": [{**event, "time": round(event["time"] - began, 2)} for event in status["events"]],
    }


_CAMERAS: dict[str, Callable[[BodySpec], dict[str, Any]]] = {
    "scene": lambda body: body.camera.to_dict(),
    "wrist": lambda body: asdict(body.wrist),
}


def success(diary: list[Episode]) -> dict[str, Any]:
    """Share of successful episodes in each phase, with Wilson's interval. The episode in the middle of which the new
    context came is of no phase."""
    swapped = [after for before, after in pairwise(diary) if before.version != after.version]
    result = {}
    for phase in PHASES:
        outcomes = [episode.success for episode in diary if episode.phase == phase and episode not in swapped]
        if outcomes:
            interval = wilson(sum(outcomes), len(outcomes)).to_dict()
            result[phase] = {"successes": sum(outcomes), "episodes": len(outcomes), **interval}
    return result


# ---- the figure ----------------------------------------------------------------------------------------------------


def figure(report: dict[str, Any], width: int = 860) -> str:
    """Success (the mean of up to ten episodes of a phase) and play loss over time, with what happened, as SVG."""
    episodes, losses = report["episodes"], [(at, loss["live"]) for at, loss in report["losses"] if loss["live"]]
    end = max([episode["finished"] for episode in episodes] + [at for at, _ in losses]) or 1.0

    def x(at: float) -> float:
        return round(60 + (width - 80) * at / end, 1)

    def shares(phase: str) -> list[tuple[float, float]]:
        """Of each episode of a phase and the nine of that phase before it."""
        mine = [episode for episode in episodes if episode["phase"] == phase]
        recent = [mine[max(0, i - 9) : i + 1] for i in range(len(mine))]
        return [(x(part[-1]["finished"]), sum(e["success"] for e in part) / len(part)) for part in recent]

    top = 1.1 * max([loss for _, loss in losses], default=1.0)
    marks = [(name, at) for name, at in report["seconds"].items()]
    parts = [
        _panel(20, 160, "success, mean of 10 episodes", 1.0, [shares(phase) for phase in PHASES]),
        _panel(220, 160, "play loss of the context in use", top, [[(x(at), value) for at, value in losses]]),
    ]
    for at in range(0, int(end) + 1, TICK):
        parts.append(f'<text x="{x(at)}" y="394" text-anchor="middle">{at}</text>')
    words = {"moved": "the cameras are moved", "drift": "a drift is seen", "accepted": "a new context"}
    for row, (name, at) in enumerate(marks):
        parts.append(f'<line x1="{x(at)}" x2="{x(at)}" y1="12" y2="380" stroke="#d33" stroke-dasharray="3 4"/>')
        side, anchor = (4, "start") if x(at) < 0.8 * width else (-4, "end")
        place = f'x="{x(at) + side}" y="{24 + 14 * row}" text-anchor="{anchor}"'
        parts.append(f'<text {place} fill="#d33">{words[name]}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 410" font-family="sans-serif" font-size="12" '
        f'fill="#666">{"".join(parts)}<text x="{width / 2}" y="408" text-anchor="middle">seconds</text></svg>'
    )


def _panel(up: int, height: int, title: str, top: float, lines: list[list[tuple[float, float]]]) -> str:
    def drawn(points: list[tuple[float, float]]) -> str:
        line = " ".join(f"{at},{up + height * (1 - value / top):.1f}" for at, value in points)
        return f'<polyline points="{line}" fill="none" stroke="#2f6fed" stroke-width="2"/>'

    ticks = "".join(
        f'<text x="54" y="{up + height * (1 - part) + 4}" text-anchor="end">{top * part:.2f}</text>'
        for part in (0, 0.5, 1)
    )
    return (
        f'{ticks}<text x="60" y="{up - 6}">{title}</text><line x1="60" x2="840" y1="{up + height}" y2="{up + height}" '
        f'stroke="#999"/>{"".join(drawn(points) for points in lines)}'
    )


def page(report: dict[str, Any]) -> str:
    """The figure and the numbers, as an HTML page that needs nothing beside it."""
    rows = "".join(
        f"<tr><td>{TOLD[phase]}</td><td>{row['successes']} of {row['episodes']}</td><td>{_percent(row)}</td></tr>"
        for phase, row in report["success"].items()
    )
    verdicts = [event["about"]["verdict"]["text"] for event in report["events"] if "verdict" in event["about"]]
    learned = "".join(f"<li>{html.escape(text)}</li>" for text in verdicts) or "<li>none</li>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Cameras are moved</title>'
        '<body style="font-family:sans-serif;max-width:60rem;margin:2rem auto">'
        f"<h1>Cameras are moved, and the robot learns</h1>{figure(report)}"
        '<table cellpadding="6"><tr><th>episodes</th><th>successes</th><th>95 % interval (Wilson)</th></tr>'
        f"{rows}</table><h2>Alignments</h2><ul>{learned}</ul></body></html>\n"
    )


def main(config: Config) -> dict[str, Any]:
    watch, policy = Stopwatch(), load(config.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        report = tell(config, policy, Path(folder))
    told = json.loads(json.dumps({k: v for k, v in vars(config).items() if k not in ("out", "page")}, default=_plain))
    report = {"settings": told, "fingerprint": policy.fingerprint(), **report, "provenance": provenance(watch.seconds)}
    for phase, row in report["success"].items():
        print(f"{TOLD[phase]}: {row['successes']} of {row['episodes']}, {_percent(row)}")
    print(", ".join(f"{name} after {seconds:.0f} s" for name, seconds in report["seconds"].items()))
    if config.out is not None:
        print(f"Written to {write_json(config.out, report)}")
    if config.page is not None:
        text = page(report)
        write_atomically(config.page, lambda path: path.write_text(text, encoding="utf-8"))
        print(f"Figure in {config.page}")
    return report


def _percent(row: dict[str, Any]) -> str:
    return Interval.from_dict(row).percent()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else vars(value)


if __name__ == "__main__":
    main(tyro.cli(Config, config=(tyro.conf.OmitArgPrefixes,)))
