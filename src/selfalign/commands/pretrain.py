"""`selfalign pretrain`: its flags, and what they mean for `align.pretrain`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from selfalign import presets
from selfalign.align.heldout import HeldOutConfig
from selfalign.align.pretrain import PretrainConfig, pretrain
from selfalign.align.settings import ContrastiveConfig, RehearsalConfig
from selfalign.checkpoint import save_checkpoint
from selfalign.data.bodies import Change, RecordedBodies
from selfalign.data.fake import write_fake
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.virtual import DrawPerturbation, PlayUse
from selfalign.model.config import VLAConfig
from selfalign.model.losses import LossWeights
from selfalign.model.policy import VLA
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.train.autocast import Precision
from selfalign.train.loop import LoopConfig
from selfalign.train.lora import LoraSettings
from selfalign.train.parallel import Strategy
from selfalign.train.parts import Part
from selfalign.train.pointing import PointingConfig
from selfalign.train.step import OptimConfig, TrainState
from selfalign.train.world import World, open_world

DEBUG_STEPS = {"pi05_alignment_debug": 100}
"""Presets for trying out a training, on made-up recordings where no data is given, and how long they train."""

DATA = Path("data/sources")
"""What is learned from where nothing is said."""


@dataclass(frozen=True)
class RecordingFlags:
    """What is learned from."""

    data: tuple[str, ...] | None = None
    """Data sets: lerobot:PATH[,PATH...], rlds:PATH@HZ, or paths alone; a folder of data sets stands for all of them.
    None: data/sources, or made-up recordings for a debugging preset."""
    data_weights: tuple[float, ...] = ()
    """How often bodies of each entry of `data` are drawn, relative to the others; none: every rig is drawn as often."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Pairs of a camera of the model and the data's camera that shows it, where they are called otherwise."""
    features: Path | None = None
    """Folder of `selfalign features` by which next observations are told; None: the vision tower's own."""
    bodies: Literal["sim", "xyz", "joints", "none"] | None = None
    """Which bodies rehearsal makes of a recorded one: of the simulator's regions (sim), with other frames of the first
    three numbers (xyz), with other orders, signs and scales of joints (joints), or none. None: as the data says."""
    changes: tuple[Change, ...] | None = None
    """What such bodies have that the recorded one has not: other frames (what --bodies says); a lower control rate;
    targets instead of displacements, or the reverse; one or two more joints, which carry nothing. None: frames, and
    rate where the data allow it. (Bodies of the simulator's regions have frames only.)"""
    turned_cameras: int = 0
    """Views of each recorded camera, turned and zoomed by a little, that bodies may have beside the recorded one; the
    vision tower runs over all pictures once more for each."""


@dataclass(frozen=True)
class BodyFlags:
    """The embodiments of a batch, and their contexts."""

    scheme: Literal["rehearsal", "per_body", "global"] = "rehearsal"
    """How contexts are treated: rehearsed, or one per source body or one for all, moved by every loss."""
    span: int | None = None
    """Contexts lie in a learned span of so many directions; None: every fast weight moves."""
    slots: int = 16
    """Embodiments in a batch, each in the middle of its own alignment."""
    max_age: int = 150
    """Alignment steps after which a slot gets a new embodiment, at the latest."""
    play_per_slot: int = 8
    demonstrations_per_slot: int = 8
    widen_steps: int = 4000
    """Steps over which action and state frames widen from canonical to all of the source region; 0: at once."""
    context_learning_rate: float = 1e-2
    """Of Adam on the contexts, here and in `selfalign align`."""
    context_decay_steps: float | None = None
    """That rate falls as 1 / sqrt(1 + (step - 1) / this); None: constant."""
    source_bodies: int | None = None
    """Draw from so many fixed source bodies; None: every slot gets a new one (64 in the scheme per_body)."""
    detach: bool = True
    """The action loss reads the contexts and does not move them; to compare with: it moves them too."""
    play_of: Literal["play", "demonstrations"] = "play"
    """What rehearsal aligns to: play, or the transitions of demonstrations."""
    play_trajectories: int | None = None
    """Trajectories of play that rehearsal uses of each rig; None: all."""
    reach_weight: float = 2.0
    """How often frames of reach demonstrations are drawn, relative to other tasks."""
    held_out_rigs: int = 0
    """Rigs that training never sees: their losses before and after alignment are logged as val/..."""


@dataclass(frozen=True)
class ModelFlags:
    """What is otherwise than in the preset."""

    alignment_depth: int | None = None
    """Layers of the alignment expert: it reads the upper ones of what the action expert reads. TTT layers that it then
    does not reach are left out. None: the preset's."""
    ttt_positions: tuple[int, ...] | None = None
    """VLM layers beside which the experts have a TTT layer; None: the preset's."""
    meta_learning: bool = False
    """The inner loop: W learns from the tokens of each sample within a forward."""
    alpha: float | None = None
    """tanh(alpha) is how far the TTT branches are open at first; None: the preset's."""
    fixed_alpha: bool = False
    """It stays so."""
    next_offset: int | None = None
    """Steps after which the next observation is seen, at most the horizon; None: the horizon."""
    next_pixels: int = 0
    """Next observations are told by pictures shrunk to this side; 0: by the vision tower."""
    open_perception: bool = False
    """The perception token sees both dynamics, which leaks labels; to compare with."""

    def applied(self, preset: VLAConfig) -> VLAConfig:
        """The preset with these changes.

        Raises:
            ValueError: what the preset cannot have.
        """
        alignment, ttt = preset.alignment, replace(preset.ttt, meta_learning=self.meta_learning)
        if self.alpha is not None:
            ttt = replace(ttt, alpha_init=self.alpha)
        if self.ttt_positions is not None:
            ttt = replace(ttt, positions=self.ttt_positions)
        if self.alignment_depth is not None:
            reads, depth = preset.action.vlm_layers(), self.alignment_depth
            if alignment is None or not 1 <= depth <= len(reads):
                raise ValueError(f"an alignment expert of {depth} layers needs an action expert of at least as many")
            alignment = replace(alignment, depth=depth, reads=reads[-depth:])
            reached = tuple(i for i in ttt.depths(preset.vlm.depth) if i in reads[-depth:])
            ttt = replace(ttt, positions=reached)
        return replace(
            preset,
            alignment=alignment,
            ttt=ttt,
            next_offset=self.next_offset,
            next_pixels=self.next_pixels,
            open_perception=self.open_perception,
        )


@dataclass(frozen=True)
class LossFlags:
    """Weights of the losses."""

    lambda_action: float = 1.0
    lambda_ttt: float = 0.1
    """Weight of the TTT layers' own reconstruction loss."""
    lambda_perception: float = 1.0
    lambda_dynamics: float = 1.0
    lambda_inverse: float = 1.0
    lambda_grounding: float = 1.0
    """Weight of pointing at what the instruction names."""
    lambda_contrastive: float = 0.0
    """Weight of InfoNCE between contexts: slots come in groups of a body, its recoloured twin and its negatives, so
    `slots` is a multiple of 2 + negatives. 0: none."""
    negatives: int = 4
    """Perturbed bodies in each such group."""
    temperature: float = 0.07

    def weights(self) -> LossWeights:
        names = ("action", "ttt", "perception", "dynamics", "inverse", "grounding")
        return LossWeights(**{name: getattr(self, f"lambda_{name}") for name in names})

    def contrastive(self) -> ContrastiveConfig:
        return ContrastiveConfig(self.lambda_contrastive, self.temperature, self.negatives)


@dataclass(frozen=True)
class OptimiserFlags:
    """What learns, and how."""

    learning_rate: float = 1e-3
    accumulate: int = 1
    """Parts that a batch is cut into and computed one after the other: the same gradients in less memory."""
    ema_decay: float | None = None
    """Ship a moving average of the weights with this decay; None: the weights themselves."""
    precision: Precision = "float32"
    """"bf16": large matrix products in bfloat16; weights, gradients and moments stay float32."""
    freeze: tuple[Part, ...] = ()
    """Parts that stay as they start. (The vision tower learns beforehand, and never here.)"""
    lora_rank: int = 0
    """Parts of `lora_parts` learn through low-rank updates of this rank (extra `lora`); 0: as usual."""
    lora_alpha: int = 16
    lora_parts: tuple[Part, ...] = ("vlm",)
    pointing_steps: int = 3500
    """Steps in which the vision tower learns to point."""


@dataclass(frozen=True)
class MachineFlags:
    """Where and how fast it runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    strategy: Strategy = "ddp"
    """How the processes that torchrun has started share the training: copies of the model, or shards of it."""
    recompute: bool = False
    """Gradient checkpointing: less memory for more time."""
    compile: bool = False
    """Compile the streams: minutes at the start, a quarter less time a step on a CPU."""
    threads: int = 2
    """Threads of the computation on a CPU, in each process."""
    workers: int = 0
    """Processes, beside each of the training's, that decode recordings and fetch batches ahead of its steps."""


@dataclass(frozen=True)
class LogFlags:
    """What is written, and when."""

    save_every: int = 500
    keep: int = 2
    """Newest training checkpoints that stay."""
    keep_every: int | None = None
    """Those of steps that are a multiple of this stay too."""
    log_every: int = 50
    validate_every: int = 500
    """Steps between the measurements on held-out rigs."""
    diagnose_every: int = 100
    """Steps between measurements of the cosine between the gradients of action and alignment losses by W; 0: none."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project of Weights & Biases to log to as well (extra `wandb`)."""


@dataclass(frozen=True)
class TrainingConfig:
    """Train a policy on source data: the tower learns to point, then the policy rehearses alignment."""

    out: Path = Path("runs/tiny")
    """Training checkpoints and logs; the finished policy is in its folder `policy`. Goes on where it stopped."""
    preset: str = "tiny"
    start: Path | None = None
    """Checkpoint to start from, trained vision tower included; None: from nothing."""
    shared: Path | None = None
    """Folder of the vision tower and of its output on every frame, where trainings share them; None: `out`."""
    snapshots: Path | None = None
    """Pictures that the vision tower learns on (`selfalign snapshots`); None: the frames of `data`, for a model of one
    camera."""
    steps: int | None = None
    """None: 6000, or 100 for a debugging preset."""
    seed: int = 0
    recordings: RecordingFlags = field(default_factory=RecordingFlags)
    bodies: BodyFlags = field(default_factory=BodyFlags)
    model: ModelFlags = field(default_factory=ModelFlags)
    losses: LossFlags = field(default_factory=LossFlags)
    optimiser: OptimiserFlags = field(default_factory=OptimiserFlags)
    machine: MachineFlags = field(default_factory=MachineFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def vla(self) -> VLAConfig:
        """The model that is trained."""
        config = self.model.applied(presets.get(self.preset))
        return replace(config, ttt=replace(config.ttt, span=self.bodies.span))

    def pretraining(self) -> PretrainConfig:
        """The same for `align.pretrain`."""
        from selfalign.sim.tasks import COLOURS

        bodies, optimiser, machine, log = self.bodies, self.optimiser, self.machine, self.log
        return PretrainConfig(
            steps=DEBUG_STEPS.get(self.preset, 6000) if self.steps is None else self.steps,
            seed=self.seed,
            optim=OptimConfig(
                learning_rate=optimiser.learning_rate,
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
                bodies=RehearsalConfig.bodies if bodies.source_bodies is None else bodies.source_bodies,
            ),
            pointing=PointingConfig(steps=optimiser.pointing_steps, seed=self.seed),
            loop=LoopConfig(
                log_every=log.log_every,
                save_every=log.save_every,
                keep=log.keep,
                keep_every=log.keep_every,
                tensorboard=log.tensorboard,
                wandb=log.wandb,
                diagnose_every=log.diagnose_every,
                validate_every=log.validate_every,
            ),
            start=self.start,
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
            play=PlayUse(bodies.play_of, bodies.play_trajectories),
            fixed_alpha=self.model.fixed_alpha,
            shared=self.shared,
        )

    def settings(self, features: str | None = None) -> AlignSettings:
        """What the policy says of how it wants to be aligned.

        Args:
            features: name of the stored features by which it knows next observations; None: the tower's own.
        """
        rehearsal = self.pretraining().rehearsal
        if rehearsal.scheme != "rehearsal":
            return AlignSettings(weights=rehearsal.weights, rehearsed=False, features=features)
        return AlignSettings(
            learning_rate=rehearsal.learning_rate,
            betas=rehearsal.betas,
            clip_norm=rehearsal.clip_norm,
            decay_steps=rehearsal.decay_steps,
            weights=rehearsal.weights,
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
        draw, export = _draw(config, source), _exporter(config, source)
        model = pretrain(model_config, source, config.out, settings, draw, on_save=export, world=world)
        if model is not None:
            export(model)


def _source(config: TrainingConfig, world: World) -> SourceData:
    """The recordings that are learned from."""
    recordings = config.recordings
    data: Iterable[str | Path] = (DATA,) if recordings.data is None else recordings.data
    if recordings.data is None and config.preset not in DEBUG_STEPS and not DATA.exists():
        raise FileNotFoundError(
            f"there is no {DATA}: record it with `selfalign sources`, or name data sets with --data"
        )
    with world.main_first():  # who opens RLDS data first, indexes them
        if recordings.data is None and config.preset in DEBUG_STEPS:
            fake = config.out / "fake_data"
            if not fake.is_dir():
                write_fake(fake, image_size=presets.get(config.preset).image_size, seed=config.seed)
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


def _exporter(config: TrainingConfig, source: SourceData) -> Callable[..., None]:
    settings = config.settings(None if source.features is None else source.features.name)

    def export(model: VLA, state: TrainState | None = None) -> None:
        save_checkpoint(Policy.from_model(model, settings), config.out / "policy")

    return export
