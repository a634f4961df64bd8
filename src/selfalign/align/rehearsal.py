"""Rehearsal: aligning inside pretraining. What makes alignment transfer to the action expert.

The batch is drawn from S slots. A slot is an embodiment in the middle of its own alignment: a context that started at
the prior W0, and the state of the optimiser that `align` will use. In every training step

1. the alignment losses of a slot's play give the gradient that moves its context, as `align` will;
2. the action loss reads that context *detached*: the action expert learns to read contexts that alignment produced, and
   never shapes them;
3. all other parameters, W0 among them through the alignment losses, take their ordinary step on the sum;
4. a slot that reaches its random age is reset to W0 and given a new embodiment.

First order: no unrolled inner loop, no second derivatives. `Plain` holds the two schemes without rehearsal that it is
compared with. Where processes share a training, each holds some of the slots.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfalign.align.batches import Batches, SlotBatch
from selfalign.align.contrastive import add_contrast, contrast_group
from selfalign.align.diagnose import gradient_cosine, mean_tanh_alpha
from selfalign.align.optim import FastAdam, FastAdamState
from selfalign.align.plain import Plain
from selfalign.align.settings import RehearsalConfig
from selfalign.data.perturb import EmbodimentPerturbation
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model.contexts import Coordinates
from selfalign.model.policy import VLA, Losses
from selfalign.train.world import ALONE, World


class Rehearsal:
    """The objective of pretraining with rehearsed contexts.

    A slot holds its context's coordinates relative to W0, so that a slot follows W0 while W0 learns.
    """

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE):
        self.model, self.config = model, config
        self.batches = Batches(model, sources, config, world)
        self.own = world.share(config.slots)
        self.optimizer = FastAdam(
            config.learning_rate, config.betas, clip_norm=config.clip_norm, decay_steps=config.decay_steps
        )
        self.coordinates = model.contexts.zeros(model.prior().detach(), self.own.stop - self.own.start)
        self.state: FastAdamState = self.optimizer.init(self.coordinates, slots=True)
        self.age = np.zeros(config.slots, dtype=np.int64)
        self.limit = np.zeros(config.slots, dtype=np.int64)
        self.bodies: list[VirtualEmbodiment] = []
        self.group = config.contrastive.group
        for first in range(0, config.slots, self.group):
            self._begin(first)
        self._leaves: Coordinates = ()

    @property
    def rng(self) -> np.random.Generator:
        return self.batches.rng

    def draw(self, parts: int) -> list[SlotBatch]:
        if self.group > 1 and (self.own.stop - self.own.start) % (parts * self.group):
            raise ValueError(
                f"{self.config.slots} slots are not groups of {self.group} (a body, its twin, its negatives) for each "
                f"of {self.batches.world.size} processes and {parts} parts of a step; choose another number of slots"
            )
        self._leaves = tuple(c.detach().requires_grad_() for c in self.coordinates)
        return self.batches.draw(self.bodies).split(parts)

    def losses(self, part: SlotBatch) -> Losses:
        prior, coordinates = self.model.prior(), [c[part.slots] for c in self._leaves]
        live = self.model.contexts.context(prior, coordinates)
        losses = self.batches.losses(part, live, live.detach() if self.config.detach else live)
        if self.group == 1:
            return losses
        start = prior.detach()
        ways = self.model.contexts.context(start, coordinates).embedding() - start.embedding()
        return add_contrast(losses, ways, self.age[self.own][part.slots] > 0, self.config.contrastive)

    def after_backward(self) -> dict[str, float]:
        """Move every context along its own gradient, age the slots, replace those that have reached their limit."""
        # The loss is a mean over slots; a slot's own gradient is that of its own mean, as in `align`.
        own = self.own.stop - self.own.start
        gradients = [torch.zeros_like(c) if c.grad is None else c.grad * own for c in self._leaves]
        self.coordinates, self.state = self.optimizer.step(self._leaves, gradients, self.state)
        self._leaves = ()
        self.age += 1
        numbers = {
            "slots/mean_age": float(self.age.mean()),
            "slots/mean_update": float(torch.cat([c.flatten(1) for c in self.coordinates], 1).norm(dim=1).mean()),
            "ttt/mean_tanh_alpha": mean_tanh_alpha(self.model),
        }
        self._replace(self.age >= self.limit)
        return numbers

    def diagnose(self) -> dict[str, float]:
        live = self.model.contexts.context(self.model.prior(), self.coordinates)
        return {"ttt/gradient_cosine": gradient_cosine(self.batches, self.bodies, live)}

    def _replace(self, old: np.ndarray) -> None:
        """Give the slots that are marked a new embodiment, the prior as context and a fresh optimiser."""
        for first in np.flatnonzero(old[:: self.group]) * self.group:
            self._begin(int(first))
        rows = torch.from_numpy(old[self.own]).to(self.state.count.device)
        self.coordinates = tuple(c.masked_fill(rows.view(-1, *[1] * (c.dim() - 1)), 0.0) for c in self.coordinates)
        self.state = self.state.reset(rows)

    def _begin(self, first: int) -> None:
        """New embodiments for a slot, or for a group of slots that are contrasted; their life starts."""
        slots = slice(first, first + self.group)
        self.age[slots] = 0
        self.limit[slots] = self.rng.integers(max(1, self.config.max_age // 8), self.config.max_age + 1)
        batches = self.batches
        self.bodies[slots] = contrast_group(
            batches.sample(), batches.sources, self.config.contrastive, self.rng, batches.width
        )

    def state_dict(self) -> dict[str, Any]:
        """The slots of all processes: which of them goes on with which slots is not written down."""
        gather = self.batches.world.gather
        return {
            "coordinates": [gather(c) for c in self.coordinates],
            "first": [gather(m) for m in self.state.first],
            "second": [gather(m) for m in self.state.second],
            "count": gather(self.state.count),
            "age": torch.from_numpy(self.age.copy()),
            "limit": torch.from_numpy(self.limit.copy()),
            "bodies": json.dumps([_describe(body) for body in self.bodies]),
            **self.batches.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.batches.world.device

        def own(tensors: list[Tensor]) -> tuple[Tensor, ...]:
            return tuple(t[self.own].to(device) for t in tensors)

        self.coordinates = own(state["coordinates"])
        self.state = FastAdamState(own(state["first"]), own(state["second"]), *own([state["count"]]))
        self.age, self.limit = state["age"].numpy().copy(), state["limit"].numpy().copy()
        self.bodies = [_rebuild(self.batches.sources, data) for data in json.loads(state["bodies"])]
        self.batches.load_state_dict(state)


def make_objective(
    model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE
) -> Rehearsal | Plain:
    """The objective of a scheme, for this process's share of the slots.

    Raises:
        ValueError: the scheme does not take what the config asks for.
    """
    if config.scheme == "rehearsal":
        return Rehearsal(model, sources, config, world)
    if config.contrastive.weight:
        raise ValueError(f"the contrastive loss is between rehearsed contexts; the scheme {config.scheme!r} has none")
    return Plain(model, sources, config, world)


def _describe(body: VirtualEmbodiment) -> dict[str, Any]:
    play = [int(e) for e in body.play_episodes]
    colours = {"recoloured": True} if body.recoloured else {}
    return {"rig": body.rig, "perturbation": body.perturbation.to_dict(), "play": play, **colours}


def _rebuild(sources: VirtualSources, data: dict[str, Any]) -> VirtualEmbodiment:
    perturbation = EmbodimentPerturbation.from_dict(data["perturbation"])
    body = sources.embodiment(data["rig"], perturbation, np.array(data["play"]))
    return replace(body, recoloured=data.get("recoloured", False))
