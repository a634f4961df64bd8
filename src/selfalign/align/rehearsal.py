"""Rehearsal: aligning inside pretraining, so that the action expert reads what aligning will give it.

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

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from selfalign.align.batches import Batches, Plan, SlotBatch
from selfalign.align.contrastive import add_contrast
from selfalign.align.diagnose import gradient_cosine, mean_tanh_alpha
from selfalign.align.lives import Lives, Slots
from selfalign.align.optim import FastAdam, FastAdamState
from selfalign.align.plain import Plain
from selfalign.align.settings import RehearsalConfig
from selfalign.data.virtual import VirtualSources
from selfalign.model.contexts import Coordinates
from selfalign.model.losses import Losses
from selfalign.model.policy import VLA
from selfalign.train.world import ALONE, World


class Rehearsal:
    """The objective of pretraining with rehearsed contexts.

    A slot holds its context's coordinates relative to W0, so that a slot follows W0 while W0 learns.
    """

    def __init__(
        self, model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE, workers: int = 0
    ):
        self.model, self.config = model, config
        self.batches = Batches(model, sources, config, world, workers)
        self.own = world.share(config.slots)
        self.optimizer = FastAdam(
            config.learning_rate, config.betas, clip_norm=config.clip_norm, decay_steps=config.decay_steps
        )
        self.coordinates = model.contexts.zeros(model.prior().detach(), self.own.stop - self.own.start)
        self.state: FastAdamState = self.optimizer.init(self.coordinates, slots=True)
        self.slots = Slots(self.batches, config)
        self.lives = self._next_lives = self.slots.first()
        self._planned: Iterator[tuple[Plan[Lives], SlotBatch]] | None = None
        self._leaves: Coordinates = ()

    def draw(self, parts: int) -> list[SlotBatch]:
        group = self.slots.group
        if group > 1 and (self.own.stop - self.own.start) % (parts * group):
            raise ValueError(
                f"{self.config.slots} slots are not groups of {group} (a body, its twin, its negatives) for each "
                f"of {self.batches.world.size} processes and {parts} parts of a step; choose another number of slots"
            )
        if self._planned is None:
            self._planned = self.batches.planned(self.slots.plans(self.lives))
        plan, batch = next(self._planned)
        self._next_lives = plan.after
        self._leaves = tuple(c.detach().requires_grad_() for c in self.coordinates)
        return batch.split(parts)

    def losses(self, part: SlotBatch) -> Losses:
        prior, coordinates = self.model.prior(), [c[part.slots] for c in self._leaves]
        live = self.model.contexts.context(prior, coordinates)
        losses = self.batches.losses(part, live, live.detach() if self.config.detach else live)
        if self.slots.group == 1:
            return losses
        start = prior.detach()
        ways = self.model.contexts.context(start, coordinates).embedding() - start.embedding()
        return add_contrast(losses, ways, self.lives.age[self.own][part.slots] > 0, self.config.contrastive)

    def after_backward(self) -> dict[str, float]:
        """Move every context along its own gradient, age the slots, replace those that have reached their limit."""
        # The loss is a mean over slots; a slot's own gradient is that of its own mean, as in `align`.
        own = self.own.stop - self.own.start
        gradients = [torch.zeros_like(c) if c.grad is None else c.grad * own for c in self._leaves]
        self.coordinates, self.state = self.optimizer.step(self._leaves, gradients, self.state)
        self._leaves = ()
        numbers = {
            "slots/mean_age": float((self.lives.age + 1).mean()),
            "slots/mean_update": float(torch.cat([c.flatten(1) for c in self.coordinates], 1).norm(dim=1).mean()),
            "ttt/mean_tanh_alpha": mean_tanh_alpha(self.model),
        }
        self._pass()
        return numbers

    def diagnose(self) -> dict[str, float]:
        live = self.model.contexts.context(self.model.prior(), self.coordinates)
        return {"ttt/gradient_cosine": gradient_cosine(self.batches, self.lives.bodies, live, self.lives.step)}

    def _pass(self) -> None:
        """On to the next step: slots with a new embodiment get the prior as context and a fresh optimiser."""
        rows = torch.from_numpy(self.lives.old[self.own]).to(self.state.count.device)
        self.coordinates = tuple(c.masked_fill(rows.view(-1, *[1] * (c.dim() - 1)), 0.0) for c in self.coordinates)
        self.state = self.state.reset(rows)
        self.lives = self._next_lives

    def state_dict(self) -> dict[str, Any]:
        """The slots of all processes: which of them goes on with which slots is not written down."""
        gather = self.batches.world.gather
        return {
            "coordinates": [gather(c) for c in self.coordinates],
            "first": [gather(m) for m in self.state.first],
            "second": [gather(m) for m in self.state.second],
            "count": gather(self.state.count),
            **self.slots.state_dict(self.lives),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.batches.world.device

        def own(tensors: list[Tensor]) -> tuple[Tensor, ...]:
            return tuple(t[self.own].to(device) for t in tensors)

        self.close()
        self.coordinates = own(state["coordinates"])
        self.state = FastAdamState(own(state["first"]), own(state["second"]), *own([state["count"]]))
        self.lives = self._next_lives = self.slots.restored(state)

    def close(self) -> None:
        """Ends the workers; what they have fetched ahead is dropped."""
        self._planned = None


def make_objective(
    model: VLA, sources: VirtualSources, config: RehearsalConfig, world: World = ALONE, workers: int = 0
) -> Rehearsal | Plain:
    """The objective of a scheme, for this process's share of the slots.

    Args:
        workers: processes that fetch batches ahead; 0: none.

    Raises:
        ValueError: the scheme does not take what the config asks for.
    """
    if config.scheme == "rehearsal":
        return Rehearsal(model, sources, config, world, workers)
    if config.contrastive.weight:
        raise ValueError(f"the contrastive loss is between rehearsed contexts; the scheme {config.scheme!r} has none")
    return Plain(model, sources, config, world, workers)
