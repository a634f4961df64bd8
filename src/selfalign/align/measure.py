"""The alignment losses of a context: of a batch with their gradient, and of play on a fixed grid."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfalign.align.bank import PlayBank
from selfalign.model.context import EmbodimentContext
from selfalign.model.contexts import Coordinates
from selfalign.model.losses import ALIGNMENT, FlowNoise, Losses, LossWeights
from selfalign.model.policy import VLA
from selfalign.model.prefix import PrefixCache
from selfalign.types import Transition

EQUAL = LossWeights()


@dataclass(frozen=True)
class PartLosses:
    """One measurement: the weighted total and its parts."""

    total: float
    perception: float
    dynamics: float
    inverse: float
    ttt: float

    @classmethod
    def of(cls, losses: Losses) -> "PartLosses":
        return cls(**losses.scalars())


def gradient(
    model: VLA,
    batch: Transition,
    start: EmbodimentContext,
    coordinates: Coordinates,
    *,
    noise: FlowNoise,
    time: Float[Tensor, " B"],
    weights: LossWeights = EQUAL,
    prefix: PrefixCache | None = None,
) -> tuple[Losses, list[Tensor]]:
    """The alignment losses of a batch and their gradient with respect to a context's coordinates."""
    leaves = [c.detach().clone().requires_grad_() for c in coordinates]
    context = model.contexts.context(start, leaves)
    losses = model.losses(batch, context, noise=noise, time=time, prefix=prefix, parts=(ALIGNMENT,), weights=weights)
    grads = torch.autograd.grad(losses.total, leaves, allow_unused=True)
    # A TTT layer at a depth that the alignment expert does not have stays at the prior.
    return losses, [torch.zeros_like(c) if g is None else g for c, g in zip(leaves, grads, strict=True)]


def draw_noise(batch: Transition, generator: torch.Generator) -> FlowNoise:
    """Noise for a batch, drawn on the CPU, so that a seed gives the same on every device."""
    noise = FlowNoise.like(batch.to("cpu"), generator=generator)
    device, following = batch.observation.state.device, noise.next_features
    return FlowNoise(
        noise.actions.to(device), noise.state.to(device), None if following is None else following.to(device)
    )


def time_quantiles(quantile: Float[Tensor, " Q"]) -> Float[Tensor, " Q"]:
    """Quantiles of the distribution of flow times that training draws from."""
    return 0.999 * quantile.pow(1 / 1.5) + 0.001


@dataclass(frozen=True, eq=False)
class EvalGrid:
    """Transitions of play, each at the same few flow times with the same noise, whenever it is measured.

    So a change of the loss is a change of the context, and contexts can be compared by it.
    """

    bank: PlayBank
    rows: Int[Tensor, " G"]
    times: Float[Tensor, " G"]
    seed: int
    batch_size: int = 128

    @classmethod
    def build(cls, bank: PlayBank, *, samples: int = 64, times: int = 4, seed: int = 0) -> "EvalGrid":
        """Evenly spread transitions at evenly spread quantiles of the flow time."""
        count = min(len(bank), samples)
        rows = torch.linspace(0, len(bank) - 1, count).round().long()
        quantiles = time_quantiles((torch.arange(times) + 0.5) / times)
        return cls(bank, rows.repeat(times), quantiles.repeat_interleave(count), seed)

    @torch.no_grad()
    def losses(self, model: VLA, context: EmbodimentContext, weights: LossWeights = EQUAL) -> PartLosses:
        """Mean losses of a context."""
        generator = torch.Generator().manual_seed(self.seed)
        sums: dict[str, float] = {}
        for rows, times in zip(self.rows.split(self.batch_size), self.times.split(self.batch_size), strict=True):
            batch, prefix = self.bank.batch(rows)
            losses = model.losses(
                batch,
                context,
                noise=draw_noise(batch, generator),
                time=times.to(self.bank.device),
                prefix=prefix,
                parts=(ALIGNMENT,),
                weights=weights,
            )
            for name, value in asdict(PartLosses.of(losses)).items():
                sums[name] = sums.get(name, 0.0) + value * len(rows) / len(self.rows)
        return PartLosses(**sums)


def null_loss(
    grid: EvalGrid,
    model: VLA,
    start: EmbodimentContext,
    norm: float,
    weights: LossWeights = EQUAL,
    *,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """Total loss after a random update of that norm, averaged over a few draws."""
    generator = torch.Generator().manual_seed(seed + 1)
    updates = [model.contexts.random(start, norm, generator=generator) for _ in range(draws)]
    return sum(grid.losses(model, update, weights).total for update in updates) / draws
