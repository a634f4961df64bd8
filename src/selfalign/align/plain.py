"""Pretraining without rehearsal: the two schemes that it is compared with."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from selfalign.align.batches import Batches, Plan, SlotBatch
from selfalign.align.diagnose import gradient_cosine, mean_tanh_alpha
from selfalign.align.lives import drawing_state, restored_drawing
from selfalign.align.settings import RehearsalConfig
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import Losses
from selfalign.model.policy import VLA
from selfalign.train.world import ALONE, World


@dataclass(frozen=True, eq=False)
class Drawn:
    """Where the drawing stands after a step, and the embodiments of that step."""

    rng: np.random.Generator
    """What is drawn next comes from a copy of it."""
    step: int
    bodies: tuple[VirtualEmbodiment, ...] = ()
    """The fixed ones; without a table, none."""
    width: float = -1.0
    """That they have."""
    chosen: Int[np.ndarray, " S"] | None = None
    """Which of them fill the slots."""


class Plain:
    """The schemes without rehearsal: contexts are ordinary parameters.

    "per_body" learns the difference to W0 of each of a fixed set of source embodiments, by the alignment losses or,
    where they are not detached, by every loss; "global" has W0 alone, which every loss moves. While
    training widens, the fixed embodiments widen with it, so that what they learn is not held up by that.
    """

    WIDTHS = 50
    """Steps of width in which fixed embodiments widen."""

    def __init__(
        self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE, workers: int = 0
    ):
        self.model, self.config = model, config
        self.batches = Batches(model, sources, config, world, workers)
        self.table: list[Tensor] = []
        if config.scheme == "per_body":
            if world.size > 1:
                raise ValueError('the scheme "per_body" learns in one process: its table of contexts is not shared')
            zeros = model.contexts.zeros(model.prior().detach(), config.fixed_bodies)
            self.table = [c.requires_grad_() for c in zeros]
            self.optimizer = torch.optim.Adam(self.table, lr=1e-3)
        self.drawn = Drawn(np.random.default_rng([config.seed, 7]), 0)
        self._planned: Iterator[tuple[Plan[Drawn], SlotBatch]] | None = None

    def draw(self, parts: int) -> list[SlotBatch]:
        if self.table:
            self.optimizer.zero_grad()
        if self._planned is None:
            self._planned = self.batches.planned(self._plans(self.drawn))
        plan, batch = next(self._planned)
        self.drawn = plan.after
        return batch.split(parts)

    def _plans(self, drawn: Drawn) -> Iterator[Plan[Drawn]]:
        """What the steps from there on read."""
        config, batches = self.config, self.batches
        while True:
            rng, step = copy.deepcopy(drawn.rng), drawn.step
            if self.table:
                fixed, width = self._widened(drawn)
                chosen = rng.choice(config.fixed_bodies, size=config.slots, replace=False)
                samples = batches.choose([fixed[i] for i in chosen], rng)
                drawn = Drawn(rng, step + 1, fixed, width, chosen)
            else:
                samples = batches.choose([batches.sample(rng, step) for _ in range(config.slots)], rng)
                drawn = Drawn(rng, step + 1)
            yield Plan(samples, drawn)

    def _widened(self, drawn: Drawn) -> tuple[tuple[VirtualEmbodiment, ...], float]:
        """The fixed embodiments at a step's width; each keeps its rig, its play and the seed of its frames."""
        width = float(np.floor(self.batches.width(drawn.step) * self.WIDTHS) / self.WIDTHS)
        if width == drawn.width:
            return drawn.bodies, width
        seeds = [[self.config.seed, 11, i] for i in range(self.config.fixed_bodies)]
        sources = self.batches.sources
        return tuple(sources.sample(np.random.default_rng(seed), width=width) for seed in seeds), width

    def losses(self, part: SlotBatch) -> Losses:
        context = self._context(part.slots)
        return self.batches.losses(part, context, context.detach() if self.table and self.config.detach else context)

    def _context(self, slots: slice) -> EmbodimentContext:
        """The contexts of some slots; without a table, W0 for all."""
        prior = self.model.prior()
        if self.drawn.chosen is None:
            return prior
        rows = torch.from_numpy(self.drawn.chosen[slots])
        return self.model.contexts.context(prior, [c[rows] for c in self.table])

    def after_backward(self) -> dict[str, float]:
        if self.table:
            self.optimizer.step()
        return {"ttt/mean_tanh_alpha": mean_tanh_alpha(self.model)}

    def diagnose(self) -> dict[str, float]:
        slots, drawn, context = self.config.slots, self.drawn, self._context(slice(None)).detach()
        if drawn.chosen is None:
            rng = np.random.default_rng([self.config.seed, 19, drawn.step])
            bodies = [self.batches.sample(rng, drawn.step) for _ in range(slots)]
            own = self.batches.world.share(slots)
            context = EmbodimentContext.stack([context] * (own.stop - own.start))
        else:
            bodies = [drawn.bodies[i] for i in drawn.chosen]
        return {"ttt/gradient_cosine": gradient_cosine(self.batches, bodies, context, drawn.step)}

    def state_dict(self) -> dict[str, Any]:
        state = drawing_state(self.drawn.rng, self.drawn.step)
        if self.table:
            state |= {"table": [t.detach() for t in self.table], "optimizer": self.optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.drawn = Drawn(*restored_drawing(state))
        if self.table:
            with torch.no_grad():
                for own, saved in zip(self.table, state["table"], strict=True):
                    own.copy_(saved)
            self.optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """Ends the workers; what they have fetched ahead is dropped."""
        self._planned = None
