"""`selfalign demo`: three bodies that the checkpoint has never had play, are aligned, and act, in a few minutes.

Writes `report.html` (films, curves, intervals), `report.json` and `before_after.gif`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from selfalign.bench.rollout import Arena, RolloutConfig, RolloutResult, rollout
from selfalign.bench.subject import ALIGNED, BEFORE, align_stepwise, body_seed, collect_play, fit_summary, identity_of
from selfalign.bench.tables import percent, print_demo
from selfalign.checkpoint import load
from selfalign.model.files import write_atomically
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.report.demo_page import SCENARIO_WORDS, demo_page
from selfalign.report.video import Film, below, beside, gif_bytes, panel, save_film
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.regions import SCENARIOS, Scenario
from selfalign.sim.tasks import Kind, offered

FORMAT = "selfalign-demo-1"
FILM_BYTES = 1_500_000
"""Of each film in the page, and of `before_after.gif`."""
ABSENT = "train one with `selfalign pretrain`, or run from the repository's root, where checkpoints/tiny is"


@dataclass(frozen=True)
class DemoConfig:
    """Three bodies that the checkpoint has never had play, are aligned, and act; writes an HTML report with films."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    out: Path = Path("demo_out")
    """Folder of the report, made where needed."""
    scenarios: tuple[Scenario, ...] = ("camera", "action", "robot")
    """One held-out body of each."""
    task: Kind = "reach"
    """What the bodies are asked to do."""
    play: int = 20
    """Play trajectories of each body."""
    play_length: int = 50
    """Frames of each, at 20 Hz."""
    episodes: int = 20
    """Episodes before, and again after."""
    films: int = 3
    """Episodes that are shown."""
    seed: int = 0
    """Draws bodies, play and scenes; any number will do."""

    def __post_init__(self) -> None:
        unknown = set(self.scenarios) - set(SCENARIOS)
        if unknown or not self.scenarios:
            raise ValueError(f"demo: unknown scenarios {sorted(unknown)}; known: {', '.join(SCENARIOS)}")
        if self.play < 2 or self.films < 1 or self.episodes < self.films:
            raise ValueError(
                "demo: needs at least 2 play trajectories, one film and an episode for each film; "
                f"got play={self.play}, films={self.films}, episodes={self.episodes}"
            )

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, beside the checkpoint's weights."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("checkpoint", "out")}


def run(config: DemoConfig, *, show: bool = True) -> dict[str, Any]:
    """Runs the demo, prints its table, writes the report, and returns what `report.json` holds.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a damaged checkpoint, or a task that is not offered for a scenario's robot.
    """
    if not config.checkpoint.is_dir():
        raise FileNotFoundError(f"no checkpoint at {config.checkpoint}: {ABSENT}")
    console, watch = Console(quiet=not show), Stopwatch()
    policy = load(config.checkpoint)
    config.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    runs: dict[Scenario, dict[str, RolloutResult]] = {}
    for number, scenario in enumerate(config.scenarios, 1):
        console.rule(f"[bold]{number}/{len(config.scenarios)}  {SCENARIO_WORDS[scenario][0]}", align="left")
        row, runs[scenario] = _body_story(config, policy, scenario, console, show)
        rows.append(row)
    result = {
        "format": FORMAT,
        "settings": config.settings(),
        "fingerprint": policy.fingerprint(),
        "acting": identity_of(policy)["acting"],
        "bodies": rows,
        "provenance": provenance(watch.seconds),
    }
    result = json.loads(json.dumps(result))
    _write(config, result, runs)
    print_demo(result, console)
    console.print(f"Report: [bold]{config.out / 'report.html'}[/] ({watch.seconds:.0f} s in all)")
    return result


def _body_story(
    config: DemoConfig, policy: Policy, scenario: Scenario, console: Console, show: bool
) -> tuple[dict[str, Any], dict[str, RolloutResult]]:
    """Play, align, act before and after: a row of the report, and the episodes."""
    body = sample_bodies(1, config.seed, "heldout", scenario)[0]
    if not offered(config.task, body.arm, body.gripper):
        raise ValueError(f"{config.task} is not offered for {body.robot.name}, the robot of scenario {scenario}")
    console.print(f"{SCENARIO_WORDS[scenario][1]} [dim]{body.name}[/]")
    seed = body_seed(config.seed, SCENARIOS.index(scenario))
    with Arena(body.robot) as arena:
        watch = Stopwatch()
        with console.status(f"the body plays: {config.play} trajectories, no task"):
            sim = arena.simulations(1)[0]
            play = collect_play(policy, body, config.play, config.play_length, seed, sim)
        sim.close()
        seconds = {"play": watch.lap()}
        console.print(f"  played  {play.seconds:.0f} s of robot time")
        fitted = align_stepwise(policy, play, seed=seed, progress=show)
        seconds["align"] = watch.lap()
        console.print(f"  aligned {fitted.result.verdict}")
        results = {
            name: _act(config, policy, body, fitted.contexts[name], seed, arena, console, name)
            for name in (BEFORE, ALIGNED)
        }
        seconds["evaluate"] = watch.lap()
    row = {
        "scenario": scenario,
        "name": body.name,
        "body": body.to_dict(),
        "success": {name: result.to_dict() for name, result in results.items()},
        **fit_summary(play, fitted),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    return row, results


def _act(config, policy: Policy, body: BodySpec, context, seed: int, arena, console: Console, name: str):
    run = RolloutConfig((config.task,), config.episodes, seed, video_episodes=config.films, video_size=192)
    word = "before" if name == BEFORE else "after "
    with console.status(f"{word}: {config.episodes} episodes in closed loop"):
        result = rollout(policy, body, context, run, arena=arena)
    console.print(f"  {word}  success {percent(result.to_dict())}")
    return result


def _panels(result: RolloutResult, header: str, count: int) -> Film:
    """The first episodes, one after another."""
    return [picture for outcome in result.outcomes[:count] for picture in panel(outcome, header)]


def _write(config: DemoConfig, result: dict[str, Any], runs: dict[Scenario, dict[str, RolloutResult]]) -> None:
    write_json(config.out / "report.json", result)
    pairs: dict[Scenario, list[Film]] = {
        scenario: [_panels(results[BEFORE], "before", config.films), _panels(results[ALIGNED], "after", config.films)]
        for scenario, results in runs.items()
    }
    page = demo_page(result, {name: gif_bytes(beside(pair), max_bytes=FILM_BYTES) for name, pair in pairs.items()})
    write_atomically(config.out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    columns = [
        below([_panels(runs[name][BEFORE], f"{SCENARIO_WORDS[name][0].lower()}: before", config.films), after])
        for name, (_, after) in pairs.items()
    ]
    save_film(beside(columns), config.out / "before_after.gif", max_bytes=FILM_BYTES)
