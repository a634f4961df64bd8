"""Tuning a method on validation bodies: the same number of random trials for each method, all written down.

    trial 0: the defaults        trial k: settings drawn from the method's search space with the seed (seed, k)
    score:   mean over bodies of the action loss on demonstrations that no method has seen

Finished trials are kept in the output, so an interrupted run goes on where it stopped.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from selfalign.baselines.choices import add_choice
from selfalign.baselines.method import Adapted, Method
from selfalign.baselines.methods import METHODS, fit, get
from selfalign.baselines.samples import action_losses
from selfalign.checkpoint import load
from selfalign.configs import below, changed, refuse
from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.policy import Policy
from selfalign.provenance import commit, provenance, read_own, write_json
from selfalign.sim.bodies import sample_bodies
from selfalign.sim.record import record_demonstrations, record_play
from selfalign.sim.regions import Scenario
from selfalign.sim.seeds import VALIDATION_FROM
from selfalign.workers import progress_bar

FORMAT = "selfalign-tune-1"


@dataclass(frozen=True, eq=False)
class Subject:
    """A validation body."""

    name: str
    play: Play
    demonstrations: Sequence[Episode]
    """That a method may learn from."""
    judged: Sequence[Episode]
    """That judge it."""


Score = Callable[[Adapted, Subject], float]
"""The lower the better."""


def loss_on_judged(adapted: Adapted, subject: Subject) -> float:
    """The action loss on the body's own judging demonstrations."""
    assert adapted.context.info.norm_stats is not None  # every method sets them
    stats = NormStats.from_dict(adapted.context.info.norm_stats)
    losses = action_losses(adapted.policy, subject.judged, stats, {"own": adapted.context})
    if not losses:
        raise ValueError(f"no demonstration that judges {subject.name} is longer than a chunk of actions")
    return losses["own"]


def trial_config(method: Method, defaults: Any, trial: int, seed: int) -> Any:
    """The settings of a trial; trial 0 has the defaults."""
    if trial == 0:
        return defaults
    rng = np.random.default_rng([seed, trial])
    return changed(defaults, {name: draw(rng) for name, draw in method.search.items()})


def tune(
    name: str,
    policy: Policy,
    subjects: Sequence[Subject],
    trials: int,
    *,
    seed: int = 0,
    config: Any = None,
    path: Path | None = None,
    score: Score = loss_on_judged,
    show: bool = False,
    told: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores settings of a method on validation bodies.

    Args:
        name: one of `METHODS`.
        trials: how many settings are tried; 1 for a method without settings.
        seed: draws the settings.
        config: settings that are not searched, beside the defaults.
        path: JSON of the trials, written after each of them, and read to go on.
        score: of a fitted body; by default the action loss on `judged`.
        told: what else the numbers depend on, for the JSON.

    Returns:
        JSON values: `trials`, each with its `config`, `scores` of the bodies, `score` (their mean; None where one was
        not finite) and `seconds`; `best`, the index of the lowest.

    Raises:
        ValueError: the file at `path` holds another measurement.
    """
    method = get(name)
    defaults = changed(method.config(), config or {})
    identity = json.loads(
        json.dumps(
            {
                "format": FORMAT,
                "method": name,
                "fingerprint": policy.fingerprint(),
                "align": policy.settings.to_dict(),
                "seed": seed,
                "defaults": asdict(defaults),
                "search": {setting: repr(draw) for setting, draw in method.search.items()},
                "bodies": [subject.name for subject in subjects],
                **(told or {}),
            }
        )
    )
    rows = _finished(path, identity)
    wanted = trials if method.search else 1
    with progress_bar(f"tuning {name}", wanted, show) as bar:
        bar.at(min(wanted, len(rows)))
        for trial in range(len(rows), wanted):
            rows.append(_trial(name, policy, subjects, trial_config(method, defaults, trial, seed), seed, score))
            if path is not None:
                write_json(path, _result(identity, rows))
            bar.finished(f"{rows[-1]['score']}")
    return _result(identity, rows[:wanted])


def _trial(
    name: str, policy: Policy, subjects: Sequence[Subject], config: Any, seed: int, score: Score
) -> dict[str, Any]:
    scores, seconds = [], 0.0
    for subject in subjects:
        adapted = fit(name, policy, subject.play, subject.demonstrations, seed=seed, config=config)
        value = score(adapted, subject)
        scores.append(round(value, 6) if math.isfinite(value) else None)
        seconds += adapted.seconds
    finite = [value for value in scores if value is not None]
    mean = float(np.mean(finite)) if len(finite) == len(scores) else None
    plain = json.loads(json.dumps(asdict(config)))
    return {"config": plain, "score": mean, "scores": scores, "seconds": round(seconds, 2)}


def _result(identity: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    ranked = [i for i, row in enumerate(rows) if row["score"] is not None]
    best = min(ranked, key=lambda i: rows[i]["score"]) if ranked else None
    return {**identity, "best": best, "trials": rows}


def _finished(path: Path | None, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that a file holds."""
    found = None if path is None else read_own(path, identity)
    return [] if found is None else found["trials"]


# ---- `selfalign bench tune` ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuneConfig:
    """Choose a method's settings on validation bodies by random search."""

    method: str
    """One of the methods of `selfalign.baselines`."""
    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    trials: int = 16
    """Settings that are tried, the defaults first; compare methods that were given equally many."""
    scenarios: tuple[Scenario, ...] = ("camera", "action", "robot")
    """Of each, `bodies` held-out bodies."""
    bodies: int = 1
    seed: int = VALIDATION_FROM
    """Draws the bodies. From a million on, so that bodies on which results are reported stay unseen."""
    play: int = 20
    """Play trajectories of each body."""
    play_length: int = 50
    demonstrations: int = 20
    """That methods may learn from, where they use any."""
    judged: int = 4
    """Further demonstrations, on which the action loss is measured."""
    settings: str = "{}"
    """JSON of settings that are not searched, for example '{"data": ["data/sources"]}'."""
    out: Annotated[Path | None, arg(aliases=("--json",))] = None
    """Where to write the trials; None: outputs/tune-METHOD.json."""
    choose: Path | None = None
    """File of choices that the best settings are written into: src/selfalign/baselines/choices.json is what the methods
    read. None: only the trials are written."""

    def __post_init__(self) -> None:
        wrong = below(self, trials=1, bodies=1, play=2, play_length=2, demonstrations=1, judged=1)
        if self.seed < VALIDATION_FROM:
            wrong.append(f"seed={self.seed} (at least {VALIDATION_FROM}: those below are for results)")
        if self.choose is not None and self.method == "selfalign":
            wrong.append(
                "choose for selfalign (the checkpoint says how it is aligned: write the best into settings.json)"
            )
        refuse("bench tune", wrong)
        if self.method not in METHODS:
            raise ValueError(f"no method {self.method!r}; there are: {', '.join(METHODS)}")
        changed(METHODS[self.method].config(), self.fixed)

    @property
    def fixed(self) -> dict[str, Any]:
        """What `settings` says."""
        try:
            told = json.loads(self.settings)
        except json.JSONDecodeError as error:
            raise ValueError(f"--settings {self.settings!r} is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise ValueError(f"--settings {self.settings!r} is not an object, as '{{\"steps\": 100}}' is")
        return told

    @property
    def path(self) -> Path:
        """Of the trials."""
        return self.out or Path("outputs") / f"tune-{self.method}.json"


def run(config: TuneConfig, *, show: bool = True) -> dict[str, Any]:
    """Records the validation bodies, tries the settings, writes and returns the trials.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a file of another measurement, or no finite trial to choose.
    """
    commit()  # is read now, not when all is tried
    policy = load(config.checkpoint)
    told = {name: getattr(config, name) for name in ("play", "play_length", "demonstrations", "judged")}
    result = tune(
        config.method,
        policy,
        validation_bodies(policy, config, show),
        config.trials,
        seed=config.seed,
        config=config.fixed,
        path=config.path,
        show=show,
        told={**told, "scenarios": list(config.scenarios)},
    )
    result = {**result, "provenance": provenance()}
    write_json(config.path, result)
    if config.choose is not None:
        add_choice(result, config.choose)
    if show and result["best"] is not None:
        best = result["trials"][result["best"]]
        print(f"Best of {len(result['trials'])}: action loss {best['score']:.4f} with {json.dumps(best['config'])}")
        print(f"Written to {config.path}")
    return result


def validation_bodies(policy: Policy, config: TuneConfig, show: bool = False) -> list[Subject]:
    """Held-out bodies of the scenarios, with their play and demonstrations."""
    size, subjects = policy.model.config.image_size, []
    chosen = [(s, body) for s in config.scenarios for body in sample_bodies(config.bodies, config.seed, "heldout", s)]
    with progress_bar("recording", len(chosen), show) as bar:
        for index, (scenario, body) in enumerate(chosen):
            seed = 10_000 * config.seed + index
            play = record_play(body, config.play, config.play_length, seed, image_size=size)
            shown = record_demonstrations(body, config.demonstrations + config.judged, seed, image_size=size)
            name = f"{scenario} {body.name}"
            learned, judged = shown[: config.demonstrations], shown[config.demonstrations :]
            subjects.append(Subject(name, Play.from_episodes(play, {"name": body.name}, body.name), learned, judged))
            bar.finished(name)
    return subjects
