"""`selfalign bench encoder`: aligns to simulated source bodies, and trains the encoder on what it found.

Finished bodies are kept beside the output, so an interrupted run goes on where it stopped.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from selfalign.baselines.choices import chosen
from selfalign.baselines.encoder import TrainedEncoder
from selfalign.baselines.encoder_training import EncoderTraining, Example, train_encoder
from selfalign.baselines.methods import METHODS, configured
from selfalign.checkpoint import load
from selfalign.data.play import Play
from selfalign.ranges import below, refuse
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.prepare import prepare
from selfalign.sim.record import record_play
from selfalign.sim.seeds import ENCODER_BODIES
from selfalign.workers import progress_bar, run_jobs


@dataclass(frozen=True)
class EncoderRun:
    """Train the encoder of the baselines: align to simulated source bodies, then regress their contexts."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    out: Path = Path("outputs/encoder.safetensors")
    """Where to write the encoder. Examples of source bodies are kept beside it, and used by a later run."""
    bodies: int = 64
    """Source bodies."""
    seed: int = ENCODER_BODIES
    """Draws them and their play."""
    play: int = 20
    """Play trajectories of each body."""
    play_length: int = 50
    """Frames of each trajectory, at 20 Hz."""
    rank: int | None = None
    """Principal directions of the contexts. None, as for the three below: what tuning chose, or else the default."""
    width: int | None = None
    """Hidden units of the encoder."""
    steps: int | None = None
    """Of its training."""
    learning_rate: float | None = None
    workers: int = 2
    """Processes, each with one thread."""

    def __post_init__(self) -> None:
        refuse("bench encoder", below(self, bodies=2, play=2, play_length=2, workers=1, seed=0))

    @property
    def folder(self) -> Path:
        """Of the examples."""
        return self.out.with_name(f"{self.out.stem}.examples")

    def training(self) -> EncoderTraining:
        told = {name: getattr(self, name) for name in ("rank", "width", "steps", "learning_rate")}
        given = {name: value for name, value in told.items() if value is not None}
        return replace(configured(METHODS["encoder"], None, chosen("encoder")).training, **given)


@dataclass(frozen=True)
class Job:
    """One source body, as a worker gets it."""

    config: EncoderRun
    index: int
    path: Path


def run(config: EncoderRun, *, show: bool = True) -> TrainedEncoder:
    """Collects, trains, writes.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a damaged checkpoint or example.
        RuntimeError: a worker died.
    """
    fingerprint = load(config.checkpoint).fingerprint()
    # The folder may hold examples of other checkpoints and other play, too.
    told = f"{fingerprint} {config.seed} {config.play} {config.play_length}"
    prefix = hashlib.sha256(told.encode()).hexdigest()[:8]
    jobs = [Job(config, i, config.folder / prefix / f"{i:04d}.safetensors") for i in range(config.bodies)]
    missing = [job for job in jobs if not job.path.is_file()]
    for robot in dict.fromkeys(body.robot for body in _source_bodies(config)) if missing else ():
        prepare(robot)  # once here, rather than at the same time in every worker
    with progress_bar("aligning", len(missing), show) as bar:
        run_jobs(collect, missing, config.workers, on_done=lambda job, _: bar.finished(job.path.stem))
    trained = train_encoder([Example.load(job.path) for job in jobs], config.training(), progress=show)
    trained.save(config.out)
    if show:
        shares = trained.training["unexplained"]
        print(
            f"{config.out}: unexplained {shares['learned']:.2f} of the source bodies that it learned from, "
            f"{shares['held_out'] or float('nan'):.2f} of others; examples in {jobs[0].path.parent}"
        )
    return trained


def collect(job: Job) -> None:
    """Play of one source body, and the context that fits it."""
    config, policy = job.config, load(job.config.checkpoint)
    body, seed = _source_bodies(config)[job.index], 10_000 * config.seed + job.index
    size = policy.model.config.image_size
    episodes = record_play(body, config.play, config.play_length, seed, image_size=size)
    Example.of(policy, Play.from_episodes(episodes, {"name": body.name}, body.name)).save(job.path)


def _source_bodies(config: EncoderRun) -> list[BodySpec]:
    return sample_bodies(config.bodies, config.seed, "source", "all")
