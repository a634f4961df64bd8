"""What contexts know: a map of them, and what can be read out of them linearly, for docs/alignment_experts.md.

    python benchmarks/context_map.py --out benchmarks/results/context_map.json

Sixty bodies of the kinds that were sources play and are aligned, about 20 s each on one core; contexts are kept, and
the same command goes on where it stopped. Each property of a body is then predicted from its W by ridge regression on
the other bodies, whose leave-one-out errors choose the ridge.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from selfalign.align.offline import AlignConfig, align
from selfalign.align.store import ContextStore
from selfalign.bench.resident import policy_of
from selfalign.bench.subject import body_seed, collect_play
from selfalign.data.perturb import JointFrame, LinearFrame
from selfalign.model.context import EmbodimentContext
from selfalign.provenance import commit, provenance, write_json
from selfalign.report import figures
from selfalign.report.context_map import FORMAT, ContextMap
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.prepare import prepare
from selfalign.sim.seeds import VALIDATION_FROM
from selfalign.workers import progress_bar, run_jobs

ROOT = Path(__file__).parents[1]
RIDGES = 10.0 ** np.arange(-4, 2)
"""Tried, as shares of the mean square of a context."""
SHUFFLES = 200
"""Of bodies, for what would be read out of nothing."""


@dataclass(frozen=True)
class Config:
    """Which bodies, and where things go."""

    checkpoint: Path = ROOT / "checkpoints/tiny"
    bodies: int = 60
    seed: int = VALIDATION_FROM
    play: int = 20
    """Trajectories of 50 frames."""
    contexts: Path = Path("outputs/contexts")
    """Folder of the contexts, a `ContextStore`."""
    figure: Path = ROOT / "docs/assets/context_map.svg"
    out: Path = Path("context_map.json")
    workers: int = 2


@dataclass(frozen=True)
class Job:
    """One body."""

    checkpoint: Path
    body: BodySpec
    seed: int
    play: int
    store: Path
    """Of contexts."""


def fit(job: Job) -> None:
    """A body plays, and its context is kept."""
    policy = policy_of(job.checkpoint)
    play = collect_play(policy, job.body, job.play, 50, job.seed)
    result = align(policy, play, config=AlignConfig(interruptible=False), progress=False)
    ContextStore(job.store).save(result.fitted)


def contexts(config: Config, bodies: list[BodySpec]) -> list[EmbodimentContext]:
    """Those of the bodies, fitted where they are not there yet.

    Raises:
        ValueError: the folder holds those of another model, or of bodies that played otherwise.
    """
    policy, made = policy_of(config.checkpoint), config.contexts / "made.json"
    identity = {"fingerprint": policy.fingerprint(), "align": policy.settings.to_dict()}
    identity = json.loads(json.dumps(identity | {"seed": config.seed, "play": config.play}))
    if made.is_file() and json.loads(made.read_text()) != identity:
        raise ValueError(f"{made} says that these contexts were made otherwise; name another folder with --contexts")
    write_json(made, identity)
    store = ContextStore(config.contexts)
    seeds = [body_seed(config.seed, index) for index in range(len(bodies))]
    jobs = [Job(config.checkpoint, body, seed, config.play, store.root) for body, seed in zip(bodies, seeds)]
    todo = [job for job in jobs if job.body.name not in store.list()]
    for robot in dict.fromkeys(job.body.robot for job in todo):
        prepare(robot)
    with progress_bar("contexts", len(jobs), show=True) as bar:
        bar.at(len(jobs) - len(todo))
        run_jobs(fit, todo, config.workers, on_done=lambda job, _: bar.finished(job.body.name))
    return [store.load(body.name) for body in bodies]


# ---- what is read out ----------------------------------------------------------------------------------------------


def properties(bodies: list[BodySpec]) -> dict[str, Float[np.ndarray, "N D"]]:
    """Of each body, as numbers. Play's statistics take the scales of a frame away, and are not in W: its rows have
    length 1 here."""

    def rows(frame: LinearFrame | JointFrame) -> np.ndarray:
        assert isinstance(frame, LinearFrame)  # all are moved by their tips
        found = np.asarray(frame.matrix, float)
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).ravel()

    arms = sorted({body.arm for body in bodies})
    return {
        "action frame": np.array([rows(body.action_space.frame) for body in bodies]),
        "state frame": np.array([rows(body.state_space.frame) for body in bodies]),
        "bearing of the camera": np.array([[body.camera.azimuth] for body in bodies]),
        "elevation of the camera": np.array([[body.camera.elevation] for body in bodies]),
        "arm": np.array([[body.arm == arm for arm in arms] for body in bodies], float),
    }


def predicted(vectors: Float[np.ndarray, "N F"], values: Float[np.ndarray, "N T D"]) -> Float[np.ndarray, "N T D"]:
    """Each body's values by ridge regression on the others'; T targets at once, each with a ridge of its own."""
    found = np.empty_like(values)
    for left in range(len(vectors)):
        others = np.arange(len(vectors)) != left
        mean, middle = vectors[others].mean(0), values[others].mean(0)
        known, wanted = vectors[others] - mean, values[others] - middle
        kernel = known @ known.T
        eigenvalues, basis = np.linalg.eigh(kernel)
        turned = np.einsum("nk,ntd->ktd", basis, wanted)
        least, dual = np.full(values.shape[1], np.inf), np.zeros_like(wanted)
        for ridge in RIDGES * np.trace(kernel) / len(kernel):
            inverse = (basis / (eigenvalues.clip(0) + ridge)) @ basis.T
            weights = np.einsum("nk,ktd->ntd", basis / (eigenvalues.clip(0) + ridge), turned)
            press = np.square(weights / np.diag(inverse)[:, None, None]).sum((0, 2))  # leave-one-out residuals
            better = press < least
            least[better], dual[:, better] = press[better], weights[:, better]
        found[left] = middle + np.einsum("n,ntd->td", known @ (vectors[left] - mean), dual)
    return found


def explained(values: Float[np.ndarray, "N T D"], guessed: Float[np.ndarray, "N T D"]) -> Float[np.ndarray, " T"]:
    """Share of the variance over bodies (R^2), of all D numbers together; below 0 where the mean says more."""
    spread = np.square(values - values.mean(0)).sum((0, 2))
    return 1 - np.square(values - guessed).sum((0, 2)) / spread


def readouts(vectors: Float[np.ndarray, "N F"], told: Mapping[str, Float[np.ndarray, "N D"]]) -> dict[str, Any]:
    """R^2 of every property, and the 95th percentile of what shuffled bodies give."""
    rng, found = np.random.default_rng(0), {}
    orders = [np.arange(len(vectors)), *(rng.permutation(len(vectors)) for _ in range(SHUFFLES))]
    for name, values in told.items():
        targets = np.stack([values[order] for order in orders], axis=1)
        shares = explained(targets, predicted(vectors, targets))
        found[name] = {"r2": float(shares[0]), "by_chance": float(np.quantile(shares[1:], 0.95))}
    return found


def main(config: Config) -> None:
    """Fits, reads out, draws."""
    commit()  # is read now, not when all is fitted
    bodies = sample_bodies(config.bodies, config.seed, "source", "all")
    fitted = contexts(config, bodies)
    drawn = ContextMap.of(fitted, {body.name: body for body in bodies})
    vectors = np.stack([context.embedding().detach().double().numpy() for context in fitted])
    result = {
        "format": FORMAT,
        "provenance": provenance(),
        "settings": {"bodies": config.bodies, "seed": config.seed, "play": config.play},
        "fingerprint": fitted[0].info.fingerprint,
        "readouts": readouts(vectors, properties(bodies)),
        **drawn.to_dict(),
    }
    write_json(config.out, result)
    config.figure.write_text(
        figures.svg(figures.context_map(drawn.points, drawn.shares, drawn.bodies)), encoding="utf-8"
    )
    for name, found in result["readouts"].items():
        print(f"{name:26} R2 {found['r2']:+.2f}, by chance {found['by_chance']:+.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
