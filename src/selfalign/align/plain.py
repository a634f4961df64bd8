"""Pretraining without rehearsal: the two schemes that it is compared with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfalign.align.batches import Batches, SlotBatch
from selfalign.align.diagnose import gradient_cosine, mean_tanh_alpha
from selfalign.align.settings import RehearsalConfig
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA, Losses
from selfalign.train.world import ALONE, World


class Plain:
    """The schemes without rehearsal: every loss moves the contexts, which are ordinary parameters.

    "per_body" learns the difference to W0 of each of a fixed set of source embodiments; "global" has W0 alone. While
    training widens, the fixed embodiments widen with it, so that what they learn is not held up by that.
    """

    WIDTHS = 50
    """Steps of width in which fixed embodiments widen."""

    def __init__(self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE):
        self.model, self.config = model, config
        self.batches = Batches(model, sources, config, world)
        self.bodies: list[VirtualEmbodiment] = []
        self._bodies_width = -1.0
        self.table: list[Tensor] = []
        if config.scheme == "per_body":
            if world.size > 1:
                raise ValueError('the scheme "per_body" learns in one process: its table of contexts is not shared')
            zeros = model.contexts.zeros(model.prior().detach(), config.bodies)
            self.table = [c.requires_grad_() for c in zeros]
            self.optimizer = torch.optim.Adam(self.table, lr=1e-3)
        self._chosen = np.zeros(0, dtype=np.int64)

    def draw(self, parts: int) -> list[SlotBatch]:
        if not self.table:
            bodies = [self.batches.sample() for _ in range(self.config.slots)]
        else:
            self.optimizer.zero_grad()
            self._widen_bodies()
            self._chosen = self.batches.rng.choice(self.config.bodies, size=self.config.slots, replace=False)
            bodies = [self.bodies[i] for i in self._chosen]
        return self.batches.draw(bodies).split(parts)

    def losses(self, part: SlotBatch) -> Losses:
        context = self._context(self._chosen[part.slots])
        return self.batches.losses(part, context, context)

    def _context(self, rows: np.ndarray) -> EmbodimentContext:
        """The contexts of some rows of the table; without a table, W0 for all."""
        prior = self.model.prior()
        if not self.table:
            return prior
        return self.model.contexts.context(prior, [c[torch.from_numpy(rows)] for c in self.table])

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

    def diagnose(self) -> dict[str, float]:
        slots, context = self.config.slots, self._context(self._chosen).detach()
        if not self.table:
            rng = np.random.default_rng([self.config.seed, 19, self.batches.step])
            bodies, own = [self.batches.sample(rng) for _ in range(slots)], self.batches.world.share(slots)
            context = EmbodimentContext.stack([context] * (own.stop - own.start))
        else:
            bodies = [self.bodies[i] for i in self._chosen]
        return {"ttt/gradient_cosine": gradient_cosine(self.batches, bodies, context)}

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
