"""`selfalign pretrain`: what its flags mean for `align.pretrain`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from selfalign import presets
from selfalign.align.heldout import HeldOutConfig
from selfalign.align.pretrain import PretrainConfig, pretrain
from selfalign.align.settings import RehearsalConfig
from selfalign.checkpoint import save_checkpoint, tokenizer_of
from selfalign.commands.pretrain_flags import (
    BodyFlags,
    LossFlags,
    MachineFlags,
    ModelFlags,
    OptimiserFlags,
    RecordingFlags,
)
from selfalign.data.bodies import RecordedBodies
from selfalign.data.fake import write_fake
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import RECORDED, SourceData
from selfalign.data.transforms import Tokenizer
from selfalign.data.virtual import DrawPerturbation, PlayUse
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer, MissingTokenizer
from selfalign.model.weights import load_config
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.train.loop import LoopConfig
from selfalign.train.lora import LoraSettings
from selfalign.train.pointing import PointingConfig
from selfalign.train.step import OptimConfig, TrainState
from selfalign.train.world import World, open_world

DEBUG_STEPS = {"pi05_alignment_debug": 100}
"""Presets for trying out a training, on made-up recordings where no data is given, and how long they train."""


@dataclass(frozen=True)
class TrainingConfig:
    """Train a policy on source data: the tower learns to point, then the policy rehearses alignment."""

    out: Path = Path("runs/tiny")
    """Training checkpoints and logs; the finished policy is in its folder `policy`. Goes on where it stopped."""
    preset: str | None = None
    """The model's architecture: tiny, small, pi05_alignment_debug, pi0_aligned or pi05_aligned; None: that of `start`,
    or tiny."""
    start: Path | None = None
    """Checkpoint to start from, trained vision tower and words included; None: from nothing, and instructions are read
    byte by byte."""
    tokenizer: Path | None = None
    """PaliGemma's sentencepiece model, for a `start` that reads by it and does not have it in its folder."""
    tower: Path | None = None
    """Checkpoint whose vision tower is taken, and nothing else of it; None: that of `start`, or one that learns."""
    shared: Path | None = None
    """Folder of the vision tower and of its output on every frame, where trainings share them; None: `out`."""
    snapshots: Path | None = None
    """Pictures that the vision tower learns on (`selfalign snapshots`); None: the frames of `data`, for a model of one
    camera, or, with `start` or `tower`, none."""
    steps: int | None = None
    """None: 6000, or 100 for a debugging preset."""
    seed: int = 0
    """Of the weights, and of everything that is drawn."""
    recordings: RecordingFlags = field(default_factory=RecordingFlags)
    bodies: BodyFlags = field(default_factory=BodyFlags)
    model: ModelFlags = field(default_factory=ModelFlags)
    losses: LossFlags = field(default_factory=LossFlags)
    optimiser: OptimiserFlags = field(default_factory=OptimiserFlags)
    machine: MachineFlags = field(default_factory=MachineFlags)
    log: LoopConfig = field(default_factory=LoopConfig)

    def architecture(self) -> VLAConfig:
        """What the model is made from."""
        if self.preset is None and self.start is not None:
            return load_config(self.start)
        return presets.get(self.preset or "tiny")

    def vla(self) -> VLAConfig:
        """The model that is trained."""
        config = self.model.applied(self.architecture())
        return replace(config, ttt=replace(config.ttt, span=self.bodies.span))

    def pretraining(self) -> PretrainConfig:
        """The same for `align.pretrain`."""
        from selfalign.sim.tasks import COLOURS

        bodies, optimiser, machine = self.bodies, self.optimiser, self.machine
        return PretrainConfig(
            steps=DEBUG_STEPS.get(self.preset or "", 6000) if self.steps is None else self.steps,
            seed=self.seed,
            optim=OptimConfig(
                learning_rate=optimiser.learning_rate,
                warmup_steps=optimiser.warmup_steps,
                final_fraction=optimiser.final_fraction,
                weight_decay=optimiser.weight_decay,
                clip_norm=optimiser.clip_norm,
                accumulate=optimiser.accumulate,
                ema_decay=optimiser.ema_decay,
                precision=optimiser.precision,
            ),
            rehearsal=RehearsalConfig(
                scheme=bodies.scheme,
                slots=bodies.slots,
                play_per_slot=bodies.play_per_slot,
                demonstrations_per_slot=bodies.demonstrations_per_slot,
                widen_steps=bodies.widen_steps,
                max_age=bodies.max_age,
                learning_rate=bodies.context_learning_rate,
                decay_steps=bodies.context_decay_steps,
                weights=self.losses.weights(),
                contrastive=self.losses.contrastive(),
                detach=bodies.detach,
                source_bodies=bodies.source_bodies,
            ),
            pointing=PointingConfig(steps=optimiser.pointing_steps, seed=self.seed),
            loop=self.log,
            start=self.start,
            tower=self.tower,
            snapshots=self.snapshots,
            compile=machine.compile,
            task_weights={"reach": bodies.reach_weight},
            keypoint_words=("tip", *COLOURS),
            data_weights=self.recordings.data_weights,
            turned_cameras=self.recordings.turned_cameras,
            held_out=HeldOutConfig(rigs=bodies.held_out_rigs),
            freeze=optimiser.freeze,
            lora=LoraSettings(optimiser.lora_rank, optimiser.lora_alpha, parts=optimiser.lora_parts),
            recompute=machine.recompute,
            strategy=machine.strategy,
            workers=machine.workers,
            play=PlayUse(bodies.play_of, bodies.play_trajectories, bodies.unit_width),
            fixed_alpha=self.model.fixed_alpha,
            shared=self.shared,
        )

    def settings(self, features: str | None = None) -> AlignSettings:
        """What the policy says of how it wants to be aligned.

        Args:
            features: name of the stored features by which it knows next observations; None: the tower's own.
        """
        rehearsal = self.pretraining().rehearsal
        return AlignSettings(
            learning_rate=rehearsal.learning_rate,
            betas=rehearsal.betas,
            clip_norm=rehearsal.clip_norm,
            decay_steps=rehearsal.decay_steps,
            weights=rehearsal.weights,
            rehearsed=rehearsal.aligned,
            features=features,
        )


def run(config: TrainingConfig) -> None:
    """Train, and export the policy with every checkpoint.

    Raises:
        ValueError, FileNotFoundError: flags, data or a checkpoint that do not go together, or are not there.
        ImportError: an extra is missing.
    """
    torch.set_num_threads(config.machine.threads)
    model_config, settings = config.vla(), config.pretraining()
    with open_world(config.machine.device) as world:
        settings.check(world)
        source = _source(config, world)
        draw, words = _draw(config, source), _words(config, model_config)
        export = _exporter(config, source, words)
        model = pretrain(model_config, source, config.out, settings, draw, tokenizer=words, on_save=export, world=world)
        if model is not None:
            export(model)


def _source(config: TrainingConfig, world: World) -> SourceData:
    """The recordings that are learned from."""
    recordings = config.recordings
    data: Iterable[str | Path] = (RECORDED,) if recordings.data is None else recordings.data
    with world.main_first():  # who opens RLDS data first, indexes them
        if recordings.data is None and config.preset in DEBUG_STEPS:
            fake = config.out / "fake_data"
            if not fake.is_dir():
                write_fake(fake, image_size=config.architecture().image_size, seed=config.seed)
            data = (fake,)
        return SourceData.open(data, cameras=recordings.cameras or None, features=recordings.features)


def _draw(config: TrainingConfig, source: SourceData) -> DrawPerturbation:
    """The bodies that rehearsal may make of what was recorded."""
    bodies = config.recordings.bodies
    if bodies == "none" and config.losses.lambda_contrastive:
        raise ValueError(
            "--lambda-contrastive tells a body from others that are made of it, and with --bodies none there are no "
            "others; leave out one of the two"
        )
    simulated = all({"arm", "gripper", "action_space"} <= body.keys() for body in source.embodiments)
    if bodies == "sim" or (bodies is None and simulated):
        from selfalign.sim.virtual import source_perturbation

        if config.recordings.changes not in (None, ("frames",)):
            raise ValueError("--changes are of recorded bodies; those of the simulator's regions have frames only")
        return source_perturbation
    if bodies == "none":
        return RecordedBodies.of(source, bodies, config.recordings.changes or ())
    model, features = config.vla(), source.info.features
    sizes = {STATE: model.state_dim, ACTION: model.action_dim}
    room = min(most - int(np.prod(features[name].shape)) for name, most in sizes.items())
    return RecordedBodies.of(source, bodies, config.recordings.changes, horizon=model.action_horizon, room=room)


def _words(config: TrainingConfig, model: VLAConfig) -> Tokenizer:
    """What instructions are read with, in training and by the policy that comes of it."""
    if config.start is None:
        if config.tokenizer is not None:
            raise ValueError("--tokenizer is that of a checkpoint to start from: give --start too, or leave it out")
        return ByteTokenizer(model.max_token_len, model.prompt_merges)
    words = tokenizer_of(config.start, model, config.tokenizer)
    if isinstance(words, MissingTokenizer):
        raise FileNotFoundError(f"{words.reason} Then: selfalign pretrain --tokenizer PATH")
    if words.reads_state:
        raise ValueError(
            f"{config.start} is told the state in its prompt, and perception has to predict the state: convert it with "
            "a state token (`selfalign convert --to pi05_aligned`)"
        )
    return words


def _exporter(config: TrainingConfig, source: SourceData, words: Tokenizer) -> Callable[..., None]:
    settings = config.settings(None if source.features is None else source.features.name)

    def export(model: VLA, state: TrainState | None = None) -> None:
        save_checkpoint(Policy(model, words, settings), config.out / "policy")

    return export
