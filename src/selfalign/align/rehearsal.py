"""Rehearsal: aligning inside pretraining. What makes alignment transfer to the action expert.

The batch is drawn from S slots. A slot is an embodiment in the middle of its own alignment: a context that started at
the prior W0, and the state of the optimiser that `align` will use. In every training step

1. the alignment losses of a slot's play give the gradient that moves its context, as `align` will;
2. the action loss reads that context *detached*: the action expert learns to read contexts that alignment produced, and
   never shapes them;
3. all other parameters, W0 among them through the alignment losses, take their ordinary step on the sum;
4. a slot that reaches its random age is reset to W0 and given a new embodiment.

First order: no unrolled inner loop, no second derivatives. `Plain` holds the two schemes without rehearsal that it is
compared with.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from selfalign.align.optim import FastAdam, FastAdamState
from selfalign.data.perturb import EmbodimentPerturbation
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model.context import EmbodimentContext
from selfalign.model.contexts import Coordinates
from selfalign.model.policy import ACTION, ALIGNMENT, VLA, Losses, LossWeights


@dataclass(frozen=True)
class RehearsalConfig:
    """Slots and batches of pretraining."""

    scheme: Literal["rehearsal", "per_body", "global"] = "rehearsal"
    """"rehearsal"; or, to compare with: one learned context per source embodiment, or one for all of them."""
    slots: int = 16
    play_per_slot: int = 8
    demonstrations_per_slot: int = 8
    max_age: int = 150
    """A slot lives for between 1/8 and all of this many steps."""
    learning_rate: float = 1e-2
    """Of the contexts; `align` uses the same."""
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    """Bound of each context's gradient norm; `align` uses the same."""
    decay_steps: float | None = None
    """How fast the contexts' rate falls (see `FastAdam`); `align` uses the same."""
    bodies: int = 64
    """Fixed source embodiments of the scheme "per_body"."""
    widen_steps: int = 0
    """New embodiments start canonical and may be any only after this many steps. Reading W and finding the goal are
    hard to learn at once: a policy that already acts on canonical bodies has only W left to learn."""
    weights: LossWeights = field(default_factory=LossWeights)
    seed: int = 0


class _Batches:
    """Draws the two batches of a step for a list of embodiments and computes their losses."""

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig):
        self.model, self.sources, self.config = model, sources, config
        self.rng = np.random.default_rng([config.seed, 7])
        self.step = 0

    @property
    def width(self) -> float:
        """How wide the training has come: 0 for canonical embodiments, 1 for any."""
        widen = self.config.widen_steps
        return min(1.0, self.step / widen) if widen else 1.0

    def sample(self) -> VirtualEmbodiment:
        """A new embodiment."""
        return self.sources.sample(self.rng, width=self.width)

    def losses(
        self, bodies: list[VirtualEmbodiment], for_alignment: EmbodimentContext, for_action: EmbodimentContext
    ) -> Losses:
        """Alignment losses on play and the action loss on demonstrations; contexts are [slots, ...] or shared."""
        config = self.config
        self.step += 1
        play = self.sources.play_batch(bodies, config.play_per_slot, self.rng)
        demonstrations = self.sources.demonstration_batch(bodies, config.demonstrations_per_slot, self.rng)
        aligned = self.model.losses(
            play, _each(for_alignment, config.play_per_slot), parts=(ALIGNMENT,), weights=config.weights
        )
        acted = self.model.losses(
            demonstrations, _each(for_action, config.demonstrations_per_slot), parts=(ACTION,), weights=config.weights
        )
        return replace(aligned, total=aligned.total + acted.total, action=acted.action, grounding=acted.grounding)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": json.dumps(self.rng.bit_generator.state), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step = state["step"]


def _each(context: EmbodimentContext, samples: int) -> EmbodimentContext:
    return context.repeat_interleave(samples) if context.batched else context


class Rehearsal:
    """The objective of pretraining with rehearsed contexts.

    A slot holds its context's coordinates relative to W0, so that a slot follows W0 while W0 learns.
    """

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig):
        self.model, self.config = model, config
        self.batches = _Batches(model, sources, config)
        self.optimizer = FastAdam(
            config.learning_rate, config.betas, clip_norm=config.clip_norm, decay_steps=config.decay_steps
        )
        self.coordinates = model.contexts.zeros(model.prior().detach(), config.slots)
        self.state: FastAdamState = self.optimizer.init(self.coordinates, slots=True)
        self.age = np.zeros(config.slots, dtype=np.int64)
        self.limit = np.zeros(config.slots, dtype=np.int64)
        self.bodies: list[VirtualEmbodiment] = [self._new_body(slot) for slot in range(config.slots)]
        self._leaves: Coordinates = ()

    @property
    def rng(self) -> np.random.Generator:
        return self.batches.rng

    def losses(self) -> Losses:
        self._leaves = tuple(c.detach().requires_grad_() for c in self.coordinates)
        live = self.model.contexts.context(self.model.prior(), self._leaves)
        return self.batches.losses(self.bodies, live, live.detach())

    def after_backward(self) -> dict[str, float]:
        """Move every context along its own gradient, age the slots, replace those that have reached their limit."""
        # The loss is a mean over slots; a slot's own gradient is that of its own mean, as in `align`.
        gradients = [torch.zeros_like(c) if c.grad is None else c.grad * self.config.slots for c in self._leaves]
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

    def _replace(self, old: np.ndarray) -> None:
        """Give the slots that are marked a new embodiment, the prior as context and a fresh optimiser."""
        for slot in np.flatnonzero(old):
            self.bodies[slot] = self._new_body(int(slot))
        rows = torch.from_numpy(old)
        self.coordinates = tuple(c.masked_fill(rows.view(-1, *[1] * (c.dim() - 1)), 0.0) for c in self.coordinates)
        self.state = self.state.reset(rows)

    def _new_body(self, slot: int) -> VirtualEmbodiment:
        self.age[slot] = 0
        self.limit[slot] = self.rng.integers(max(1, self.config.max_age // 8), self.config.max_age + 1)
        return self.batches.sample()

    def state_dict(self) -> dict[str, Any]:
        return {
            "coordinates": list(self.coordinates),
            "first": list(self.state.first),
            "second": list(self.state.second),
            "count": self.state.count,
            "age": torch.from_numpy(self.age.copy()),
            "limit": torch.from_numpy(self.limit.copy()),
            "bodies": json.dumps([_describe(body) for body in self.bodies]),
            **self.batches.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coordinates = tuple(state["coordinates"])
        self.state = FastAdamState(tuple(state["first"]), tuple(state["second"]), state["count"])
        self.age, self.limit = state["age"].numpy().copy(), state["limit"].numpy().copy()
        self.bodies = [_rebuild(self.batches.sources, data) for data in json.loads(state["bodies"])]
        self.batches.load_state_dict(state)


class Plain:
    """The schemes without rehearsal: every loss moves the contexts, which are ordinary parameters.

    "per_body" learns the difference to W0 of each of a fixed set of source embodiments; "global" has W0 alone. While
    training widens, the fixed embodiments widen with it, so that what they learn is not held up by that.
    """

    WIDTHS = 50
    """Steps of width in which fixed embodiments widen."""

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig):
        self.model, self.config = model, config
        self.batches = _Batches(model, sources, config)
        self.bodies: list[VirtualEmbodiment] = []
        self._bodies_width = -1.0
        self.table: list[Tensor] = []
        if config.scheme == "per_body":
            zeros = model.contexts.zeros(model.prior().detach(), config.bodies)
            self.table = [c.requires_grad_() for c in zeros]
            self.optimizer = torch.optim.Adam(self.table, lr=1e-3)
        self._chosen = np.zeros(0, dtype=np.int64)

    def losses(self) -> Losses:
        prior = self.model.prior()
        if not self.table:
            bodies = [self.batches.sample() for _ in range(self.config.slots)]
            return self.batches.losses(bodies, prior, prior)
        self.optimizer.zero_grad()
        self._widen_bodies()
        self._chosen = self.batches.rng.choice(self.config.bodies, size=self.config.slots, replace=False)
        rows = torch.from_numpy(self._chosen)
        context = self.model.contexts.context(prior, [c[rows] for c in self.table])
        return self.batches.losses([self.bodies[i] for i in self._chosen], context, context)

    def _widen_bodies(self) -> None:
        """The fixed embodiments at the present width; each keeps its rig, its play and the seed of its frames."""
        width = np.floor(self.batches.width * self.WIDTHS) / self.WIDTHS
        if width != self._bodies_width:
            seeds = [[self.config.seed, 11, i] for i in range(self.config.bodies)]
            sources = self.batches.sources
            self.bodies = [sources.sample(np.random.default_rng(seed), width=width) for seed in seeds]
            self._bodies_width = width

    def after_backward(self) -> dict[str, float]:
        if self.table:
            self.optimizer.step()
        return {"ttt/mean_tanh_alpha": mean_tanh_alpha(self.model)}

    def state_dict(self) -> dict[str, Any]:
        state = self.batches.state_dict()
        if self.table:
            state |= {"table": [t.detach() for t in self.table], "optimizer": self.optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)
        if self.table:
            with torch.no_grad():
                for own, saved in zip(self.table, state["table"], strict=True):
                    own.copy_(saved)
            self.optimizer.load_state_dict(state["optimizer"])


def make_objective(model: VLA, sources: VirtualSources, config: RehearsalConfig) -> Rehearsal | Plain:
    """The objective of a scheme."""
    return (Rehearsal if config.scheme == "rehearsal" else Plain)(model, sources, config)


def mean_tanh_alpha(model: VLA) -> float:
    """How far the TTT branches are open, on average over layers and channels; 0 means that W is not read."""
    alphas = [layer.alpha.detach() for layer in model.ttt_layers]
    return float(torch.cat(alphas).tanh().abs().mean()) if alphas else 0.0


def _describe(body: VirtualEmbodiment) -> dict[str, Any]:
    play = [int(e) for e in body.play_episodes]
    return {"rig": body.rig, "perturbation": body.perturbation.to_dict(), "play": play}


def _rebuild(sources: VirtualSources, data: dict[str, Any]) -> VirtualEmbodiment:
    perturbation = EmbodimentPerturbation.from_dict(data["perturbation"])
    return sources.embodiment(data["rig"], perturbation, np.array(data["play"]))
