"""Held-out bodies in pretraining: how far alignment takes the action loss on rigs that training never sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from selfalign.align.batches import Batches, SlotBatch
from selfalign.align.diagnose import aside
from selfalign.align.optim import FastAdam
from selfalign.align.settings import RehearsalConfig
from selfalign.configs import below, refuse
from selfalign.data.virtual import VirtualSources
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.train.step import TrainState
from selfalign.train.world import World


@dataclass(frozen=True)
class HeldOutConfig:
    """What is held out, and how it is measured."""

    rigs: int = 0
    """Rigs of the data that are left out of training; 0: none, and nothing is measured."""
    bodies: int = 8
    """Embodiments that are made of them, at the training's full width and the same at every measurement."""
    align_steps: int = 10

    def __post_init__(self) -> None:
        refuse("measuring on held-out rigs", below(self, rigs=0, bodies=1, align_steps=0))


def hold_out(rigs: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rigs for training and held-out ones, chosen by the seed.

    Raises:
        ValueError: none would be left for training.
    """
    if not 0 <= count < len(rigs):
        raise ValueError(f"of {len(rigs)} rigs, {count} cannot be held out")
    held = np.random.default_rng([seed, 29]).choice(rigs, size=count, replace=False)
    return np.setdiff1d(rigs, held), np.sort(held)


class HeldOut:
    """Losses on held-out bodies before and after a few steps of alignment, on fixed samples, noise and times."""

    def __init__(
        self, model: VLA, sources: VirtualSources, rehearsal: RehearsalConfig, config: HeldOutConfig, world: World
    ):
        self.model, self.config, self.seed = model, config, rehearsal.seed
        alone = World(device=world.device)  # every process measures everything
        settings = replace(rehearsal, slots=config.bodies, widen_steps=0, source_bodies=None)
        self._batches = Batches(model, sources, settings, alone)
        rng = np.random.default_rng([rehearsal.seed, 31])
        self._bodies = [self._batches.sample(rng, 0) for _ in range(config.bodies)]
        self._optimizer = FastAdam(
            rehearsal.learning_rate,
            rehearsal.betas,
            clip_norm=rehearsal.clip_norm,
            decay_steps=rehearsal.decay_steps,
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        """`val/before/...` and `val/after/...`, with the averaged weights where there are some."""
        was_training = self.model.training
        self.model.eval()
        try:
            if state.ema is None:
                return self.measure()
            with state.ema.in_place():
                return self.measure()
        finally:
            self.model.train(was_training)

    def measure(self) -> dict[str, float]:
        with aside([self.seed, 37]) as rng:
            batch = self._batches.draw_from(self._bodies, rng)
            prior = self.model.prior().detach()
            before = self._evaluate(batch, EmbodimentContext.stack([prior] * len(self._bodies)))
            after = self._evaluate(batch, self._align(prior, rng))
        return {
            f"val/{when}/{name}": x for when, xs in (("before", before), ("after", after)) for name, x in xs.items()
        }

    def _align(self, prior: EmbodimentContext, rng: np.random.Generator) -> EmbodimentContext:
        contexts, count = self.model.contexts, len(self._bodies)
        coordinates = contexts.zeros(prior, count)
        state = self._optimizer.init(coordinates, slots=True)
        for _ in range(self.config.align_steps):
            leaves = tuple(c.detach().requires_grad_() for c in coordinates)
            batch = self._batches.draw_from(self._bodies, rng)
            loss = self._batches.alignment_losses(batch, contexts.context(prior, leaves)).total
            gradients = [count * g for g in torch.autograd.grad(loss, leaves)]
            coordinates, state = self._optimizer.step(leaves, gradients, state)
        return contexts.context(prior, coordinates)

    @torch.no_grad()
    def _evaluate(self, batch: SlotBatch, context: EmbodimentContext) -> Mapping[str, float]:
        numbers = self._batches.losses(batch, context, context).scalars()
        return {name: value for name, value in numbers.items() if name != "total"}
