"""The flags of `selfalign pretrain`, by what they are about."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from selfalign.align.settings import ContrastiveConfig
from selfalign.data.bodies import Change
from selfalign.model.config import VLAConfig
from selfalign.model.losses import LossWeights
from selfalign.train.autocast import Precision
from selfalign.train.parallel import Strategy
from selfalign.train.parts import Part


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
    """How contexts are treated: rehearsed, or one per source body, or one for all, which every loss moves."""
    span: int | None = None
    """Contexts lie in a learned span of so many directions; None: every fast weight moves."""
    slots: int = 16
    """Embodiments in a batch, each in the middle of its own alignment."""
    max_age: int = 150
    """Alignment steps after which a slot gets a new embodiment, at the latest."""
    play_per_slot: int = 8
    """Samples of a slot's play in a batch: what moves its context."""
    demonstrations_per_slot: int = 8
    """Samples of its demonstrations: what the action loss is of."""
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
    unit_width: float = 0.0
    """How far the units of a body's numbers may lie from those of its play, up to 1: from a third to three of its
    spreads, and off its mean by one, so that play may be slow or quick. 0: they are those of its play."""
    reach_weight: float = 2.0
    """How often frames of reach demonstrations are drawn, relative to other tasks."""
    held_out_rigs: int = 0
    """Rigs that training never sees: their losses before and after alignment are logged as val/..."""


@dataclass(frozen=True)
class ModelFlags:
    """What is otherwise than in the preset, or in the checkpoint that is the start."""

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
    prompt_tokens: int | None = None
    """Tokens of a latent prompt, which both experts read beside the prefix and every loss moves; None: the preset's."""
    next_offset: int | None = None
    """Steps after which the next observation is seen, at most the horizon; None: the preset's."""
    next_pixels: int | None = None
    """Next observations are told by pictures shrunk to this side; 0: by the vision tower; None: the preset's."""
    open_perception: bool = False
    """The perception token sees both dynamics, which leaks labels; to compare with."""

    def applied(self, preset: VLAConfig) -> VLAConfig:
        """The preset with these changes.

        Raises:
            ValueError: what the preset cannot have.
        """
        alignment, ttt = preset.alignment, preset.ttt
        ttt = replace(ttt, meta_learning=self.meta_learning or ttt.meta_learning)
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
        given = {name: getattr(self, name) for name in ("prompt_tokens", "next_offset", "next_pixels")}
        return replace(
            preset,
            alignment=alignment,
            ttt=ttt,
            open_perception=self.open_perception or preset.open_perception,
            **{name: value for name, value in given.items() if value is not None},
        )


@dataclass(frozen=True)
class LossFlags:
    """Weights of the losses."""

    lambda_action: float = 1.0
    """Weight of the flow of actions."""
    lambda_ttt: float = 0.1
    """Weight of the TTT layers' own reconstruction loss."""
    lambda_perception: float = 1.0
    """Weight of telling the state from the pictures."""
    lambda_dynamics: float = 1.0
    """Weight of telling the next observation from the actions."""
    lambda_inverse: float = 1.0
    """Weight of telling the actions from the next observation."""
    lambda_grounding: float = 1.0
    """Weight of pointing at what the instruction names."""
    lambda_contrastive: float = 0.0
    """Weight of InfoNCE between contexts: slots come in groups of a body, its recoloured twin and its negatives, so
    `slots` is a multiple of 2 + negatives. 0: none."""
    negatives: int = 4
    """Perturbed bodies in each such group."""
    temperature: float = 0.07
    """Of InfoNCE."""

    def weights(self) -> LossWeights:
        names = ("action", "ttt", "perception", "dynamics", "inverse", "grounding")
        return LossWeights(**{name: getattr(self, f"lambda_{name}") for name in names})

    def contrastive(self) -> ContrastiveConfig:
        return ContrastiveConfig(self.lambda_contrastive, self.temperature, self.negatives)


@dataclass(frozen=True)
class OptimiserFlags:
    """What learns, and how."""

    learning_rate: float = 1e-3
    """Of AdamW, at its peak."""
    warmup_steps: int = 300
    """Steps in which the rate rises to it."""
    final_fraction: float = 0.02
    """What is left of it at the end, after a cosine's decay."""
    weight_decay: float = 1e-2
    """On matrices; never on W0."""
    clip_norm: float = 1.0
    """Bound of the gradient's norm."""
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
    """The updates are scaled by this over their rank."""
    lora_parts: tuple[Part, ...] = ("vlm",)
    """Parts whose blocks have such updates."""
    pointing_steps: int = 3500
    """Steps in which the vision tower learns to point."""


@dataclass(frozen=True)
class MachineFlags:
    """Where and how fast it runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Of several processes, each takes a GPU of its own."""
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
