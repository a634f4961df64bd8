"""What a training step reads: play and demonstrations of some embodiments, with the noise that losses are taken at.

Everything is drawn for all slots, from the same generators in every process, and cut to the process's own slots: the
numbers of a training do not depend on how many processes share it.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from selfalign.align.settings import RehearsalConfig
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import ACTION, ALIGNMENT, VLA, FlowNoise, Losses
from selfalign.train.world import ALONE, World
from selfalign.types import TensorStruct, Transition


@dataclass(frozen=True)
class FlowBatch(TensorStruct):
    """Samples, and the noise and flow times at which their losses are taken."""

    transition: Transition
    noise: FlowNoise
    time: Float[Tensor, " B"]


@dataclass(frozen=True)
class SlotBatch:
    """Samples of consecutive slots, slot after slot."""

    slots: slice
    """Which of the process's own slots."""
    play: FlowBatch
    demonstrations: FlowBatch

    def split(self, parts: int) -> list["SlotBatch"]:
        """Equal parts of consecutive slots.

        Raises:
            ValueError: there are not as many slots in each.
        """
        count = self.slots.stop - self.slots.start
        if count % parts:
            raise ValueError(f"{count} slots cannot be cut into {parts} equal parts; choose another `accumulate`")
        return [self._part(slice(at, at + count // parts)) for at in range(0, count, count // parts)]

    def _part(self, slots: slice) -> "SlotBatch":
        count = self.slots.stop - self.slots.start

        def cut(batch: FlowBatch) -> FlowBatch:
            each = len(batch.time) // count
            return batch[slots.start * each : slots.stop * each]

        return SlotBatch(slots, cut(self.play), cut(self.demonstrations))


class Batches:
    """Draws the batch of a step for a list of embodiments, and computes its losses."""

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE):
        self.model, self.sources, self.config, self.world = model, sources, config, world
        self.rng = np.random.default_rng([config.seed, 7])
        self.step = 0

    @property
    def width(self) -> float:
        """How wide the training has come: 0 for canonical embodiments, 1 for any."""
        widen = self.config.widen_steps
        return min(1.0, self.step / widen) if widen else 1.0

    def sample(self, rng: np.random.Generator | None = None) -> VirtualEmbodiment:
        """A new embodiment, or one of the fixed ones; from `rng`, or from the training's own generator.

        A fixed one keeps its rig, its play and the seed of its frames while the training widens.
        """
        rng = self.rng if rng is None else rng
        if self.config.source_bodies is not None:
            rng = np.random.default_rng([self.config.seed, 11, int(rng.integers(self.config.source_bodies))])
        return self.sources.sample(rng, width=self.width)

    def draw(self, bodies: list[VirtualEmbodiment]) -> SlotBatch:
        """The batch of the next step."""
        self.step += 1
        return self.draw_from(bodies, self.rng)

    def draw_from(self, bodies: list[VirtualEmbodiment], rng: np.random.Generator) -> SlotBatch:
        """A batch of this process's share of the bodies; noise comes from torch's generator."""
        config, own = self.config, self.world.share(len(bodies))
        play = self.sources.play_batch(bodies, config.play_per_slot, rng, own)
        demonstrations = self.sources.demonstration_batch(bodies, config.demonstrations_per_slot, rng, own)
        return SlotBatch(
            slice(0, own.stop - own.start),
            self._with_noise(play, len(bodies), own, config.play_per_slot),
            self._with_noise(demonstrations, len(bodies), own, config.demonstrations_per_slot),
        )

    def losses(self, batch: SlotBatch, for_alignment: EmbodimentContext, for_action: EmbodimentContext) -> Losses:
        """Alignment losses on play and the action loss on demonstrations; contexts are [slots, ...] or shared."""
        aligned, acted = self.alignment_losses(batch, for_alignment), self.action_losses(batch, for_action)
        return replace(aligned, total=aligned.total + acted.total, action=acted.action, grounding=acted.grounding)

    def alignment_losses(self, batch: SlotBatch, context: EmbodimentContext) -> Losses:
        return self._losses(batch.play, context, self.config.play_per_slot, ALIGNMENT)

    def action_losses(self, batch: SlotBatch, context: EmbodimentContext) -> Losses:
        return self._losses(batch.demonstrations, context, self.config.demonstrations_per_slot, ACTION)

    def _losses(self, batch: FlowBatch, context: EmbodimentContext, each: int, part: str) -> Losses:
        context = context.repeat_interleave(each) if context.batched else context
        return self.model.losses(
            batch.transition,
            context,
            noise=batch.noise,
            time=batch.time,
            parts=(part,),
            weights=self.config.weights,
        )

    def _with_noise(self, own_samples: Transition, bodies: int, own: slice, each: int) -> FlowBatch:
        noise = FlowNoise.like(own_samples, samples=bodies * each)
        time = flow.sample_time(bodies * each)
        rows = slice(own.start * each, own.stop * each)
        return FlowBatch(own_samples, noise[rows], time[rows]).to(self.world.device)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": json.dumps(self.rng.bit_generator.state), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step = state["step"]
