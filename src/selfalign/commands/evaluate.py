"""`selfalign eval`: success of one body under one context, in closed loop."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from selfalign.bench.rollout import RolloutConfig, rollout
from selfalign.bench.tables import percent
from selfalign.checkpoint import load
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, without_places, write_json
from selfalign.report.video import Film, panel, save_film
from selfalign.sim.bodies import BodySpec
from selfalign.sim.tasks import Kind

FORMAT = "selfalign-eval-1"


@dataclass(frozen=True)
class EvalConfig:
    """Success of one body under one context, in closed loop, with Wilson's interval."""

    checkpoint: Path
    """Checkpoint directory."""
    context: Path
    """Context file of the body, as `selfalign align` writes it."""
    body: Path
    """JSON of the body (`BodySpec.to_dict`), or the LeRobot data set of its play, which holds that JSON."""
    prior: bool = False
    """Act with the prior W0 and only the statistics of `context`: the success before aligning."""
    task: Kind = "reach"
    """What the body is asked to do."""
    episodes: int = 20
    """How many episodes; a seed gives the same scenes to every context."""
    seed: int = 0
    """Draws scenes and noise."""
    execute: int = 4
    """Steps of each action chunk that are carried out before the policy is asked again."""
    num_steps: int = 10
    """Euler steps of the flow per chunk."""
    speed: float | None = None
    """What displacements are multiplied by; None: the checkpoint's own speed."""
    temperature: float | None = None
    """What the noise that samples start from is multiplied by; None: the checkpoint's own temperature."""
    device: str = "cpu"
    """Where the model goes; "cuda" for a large one."""
    video: Path | None = None
    """Film of the first episodes, a .gif or an .mp4."""
    films: int = 3
    """Episodes in the film."""
    out: Annotated[Path | None, arg(aliases=("--json",))] = None
    """Where to write the result."""


def run(config: EvalConfig, *, show: bool = True) -> dict[str, Any]:
    """Runs the episodes, prints the success with Wilson's interval, and returns what `--out` writes.

    Raises:
        FileNotFoundError: no checkpoint, context or body.
        ValueError: a damaged file, a context of another model, a body that the context does not fit, or an impossible
            speed or temperature.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    if config.video is not None and config.video.suffix not in (".gif", ".mp4"):
        raise ValueError(f"a film is a .gif or an .mp4, got {config.video}")
    policy = load(config.checkpoint, config.device).acting_at(config.speed, config.temperature)
    body, context = read_body(config.body), policy.load_context(config.context)
    if config.prior:
        context = as_prior(policy, context)
    plan = RolloutConfig(
        (config.task,),
        config.episodes,
        config.seed,
        config.execute,
        config.num_steps,
        video_episodes=min(config.films, config.episodes) if config.video is not None else 0,
        video_size=192,
    )
    with console.status(f"{config.episodes} episodes of {config.task}"):
        result = rollout(policy, body, context, plan)
    summary = {
        "format": FORMAT,
        "task": config.task,
        "seed": config.seed,
        "name": body.name,
        "body": body.to_dict(),
        "context": "prior" if config.prior else without_places(config.context),
        "fingerprint": policy.fingerprint(),
        "acting": policy.acting.to_dict(),
        "success": result.to_dict(),
        "outcomes": [
            {"instruction": o.instruction, "success": o.success, "progress": round(o.progress, 4)}
            for o in result.outcomes
        ],
        "provenance": provenance(watch.seconds),
    }
    _print(summary, console)
    if config.video is not None:
        film: Film = []
        for outcome in result.outcomes[: plan.video_episodes]:
            film += panel(outcome, "prior W0" if config.prior else "aligned")
        console.print(f"Film: {save_film(film, config.video)}")
    if config.out is not None:
        console.print(f"Written to {write_json(config.out, summary)}")
    return summary


def as_prior(policy: Policy, context: EmbodimentContext) -> EmbodimentContext:
    """The prior W0 in the units of a context's body."""
    return context.with_tensors([t.detach().clone() for t in policy.model.prior().tensors])


def read_body(path: Path) -> BodySpec:
    """A body from its JSON, or from the data set of its play.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, not a body, or a data set of several bodies.
    """
    if path.is_dir():
        path = path / "meta" / "embodiments.json"
    if not path.is_file():
        raise FileNotFoundError(f"no body at {path}; `selfalign play` writes one beside the play that it records")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(data, list):
        if len(data) != 1:
            raise ValueError(f"{path} lists {len(data)} bodies; write the one to evaluate into a file of its own")
        data = data[0]
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__}, not a body")
    return BodySpec.from_dict(data)


def _print(summary: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{summary['name']}, {summary['context']}", title_justify="left")
    for column in ("task", "success (95 %)", "episodes", "mean progress"):
        table.add_column(column)
    success = summary["success"]
    count = f"{success['successes']} of {success['episodes']}"
    table.add_row(summary["task"], percent(success), count, f"{100 * success['mean_progress']:.1f} cm")
    console.print(table)
