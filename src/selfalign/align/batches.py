"""What a training step reads: play and demonstrations of some embodiments, with the noise that losses are taken at.

Everything is drawn for all slots, from the same generators in every process, and cut to the process's own slots: the
numbers of a training do not depend on how many processes share it. What is drawn but the noise does not depend on the
model either: it is planned ahead, and workers fetch what it asks for.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from selfalign.align.settings import RehearsalConfig
from selfalign.data.loading import fetch_ahead
from selfalign.data.virtual import FrameRequest, Samples, Seen, VirtualEmbodiment, VirtualSources
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import ACTION, ALIGNMENT, FlowNoise, Losses
from selfalign.model.policy import VLA
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


@dataclass(frozen=True, eq=False)
class SlotSamples:
    """What a step reads, by place: samples of this process's share of the slots."""

    play: Samples
    demonstrations: Samples

    @property
    def requests(self) -> tuple[FrameRequest, FrameRequest]:
        """What is to be fetched for them."""
        return self.play.request, self.demonstrations.request


After = TypeVar("After")


@dataclass(frozen=True, eq=False)
class Plan(Generic[After]):
    """A step's samples, and where the drawing stands when they have been used."""

    samples: SlotSamples
    after: After


class Batches:
    """Draws batches of a list of embodiments, and computes their losses.

    Args beyond the obvious:
        workers: processes that fetch what planned batches need; 0: it is fetched when it is needed.
    """

    def __init__(
        self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE, workers: int = 0
    ):
        self.model, self.sources, self.config, self.world, self.workers = model, sources, config, world, workers

    def width(self, step: int) -> float:
        """How wide the training has come: 0 for canonical embodiments, 1 for any."""
        widen = self.config.widen_steps
        return min(1.0, step / widen) if widen else 1.0

    def sample(self, rng: np.random.Generator, step: int) -> VirtualEmbodiment:
        """A new embodiment, of the width of a step, or one of the fixed ones.

        A fixed one keeps its rig, its play and the seed of its frames while the training widens.
        """
        if self.config.source_bodies is not None:
            rng = np.random.default_rng([self.config.seed, 11, int(rng.integers(self.config.source_bodies))])
        return self.sources.sample(rng, width=self.width(step))

    def choose(self, bodies: Sequence[VirtualEmbodiment], rng: np.random.Generator) -> SlotSamples:
        """Samples of this process's share of the bodies."""
        config, own = self.config, self.world.share(len(bodies))
        play = self.sources.play_samples(bodies, config.play_per_slot, rng, own)
        return SlotSamples(play, self.sources.demonstration_samples(bodies, config.demonstrations_per_slot, rng, own))

    def draw_from(self, bodies: Sequence[VirtualEmbodiment], rng: np.random.Generator) -> SlotBatch:
        """A batch of this process's share of the bodies, at once; noise comes from torch's generator."""
        samples = self.choose(bodies, rng)
        return self._batch(samples, self._fetch(samples.requests))

    def planned(self, plans: Iterator[Plan[After]]) -> Iterator[tuple[Plan[After], SlotBatch]]:
        """The batches of plans, in their order. Plans are made ahead, noise is drawn when a batch is asked for."""
        waiting: deque[Plan[After]] = deque()

        def requests() -> Iterator[tuple[FrameRequest, FrameRequest]]:
            for plan in plans:
                waiting.append(plan)
                yield plan.samples.requests

        for seen in fetch_ahead(self._fetch, requests(), self.workers):
            plan = waiting.popleft()
            yield plan, self._batch(plan.samples, seen)

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

    def _fetch(self, requests: tuple[FrameRequest, FrameRequest]) -> tuple[Seen, Seen]:
        play, demonstrations = requests
        return self.sources.features.fetch(play), self.sources.features.fetch(demonstrations)

    def _batch(self, samples: SlotSamples, seen: tuple[Seen, Seen]) -> SlotBatch:
        return SlotBatch(
            slice(0, len(samples.play.bodies)),
            self._with_noise(self.sources.batch(samples.play, seen[0]), self.config.play_per_slot),
            self._with_noise(self.sources.batch(samples.demonstrations, seen[1]), self.config.demonstrations_per_slot),
        )

    def _with_noise(self, own_samples: Transition, each: int) -> FlowBatch:
        """With the noise of these samples out of that of all processes'."""
        bodies = len(own_samples.observation.state) // each * self.world.size
        own = self.world.share(bodies)
        noise = FlowNoise.like(own_samples, samples=bodies * each)
        time = flow.sample_time(bodies * each)
        rows = slice(own.start * each, own.stop * each)
        return FlowBatch(own_samples, noise[rows], time[rows]).to(self.world.device)
