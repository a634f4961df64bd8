"""What moves when a context is fitted: every fast weight on its own, or a vector in a learned span.

    full    W = W_start + delta
    span    W = W_start + sum_k z_k B_k           z: K numbers, B: learned in pretraining, shared by all embodiments

Coordinates (delta, or z) are displacements from a start context, so every fit begins at zeros; with a leading axis of
slots they are those of several embodiments. Both kinds have one interface, and whoever reads a context does not know
which made it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfalign.model.context import EmbodimentContext

Coordinates = tuple[Tensor, ...]


class FullContexts(nn.Module):
    """Every number of W1 and b1 moves."""

    def zeros(self, start: EmbodimentContext, slots: int | None = None) -> Coordinates:
        """Coordinates of the start itself; with `slots`, of so many fits that begin there."""
        lead = () if slots is None else (slots,)
        return tuple(torch.zeros(*lead, *w.shape, dtype=w.dtype, device=w.device) for w in start.tensors)

    def context(self, start: EmbodimentContext, coordinates: Sequence[Tensor]) -> EmbodimentContext:
        """The context at some coordinates. Differentiable in both; batched where the coordinates are."""
        return start.with_tensors([w + d for w, d in zip(start.tensors, coordinates, strict=True)])

    def locate(self, start: EmbodimentContext, context: EmbodimentContext) -> Coordinates:
        """Coordinates of a context: undoes `context`."""
        return tuple(w - w0 for w, w0 in zip(context.tensors, start.tensors, strict=True))

    def random(
        self, start: EmbodimentContext, norm: float, *, generator: torch.Generator | None = None
    ) -> EmbodimentContext:
        """The start plus an update of that Euclidean norm in a random direction that a fit could take."""
        drawn = [torch.randn(c.shape, generator=generator).to(c) for c in self.zeros(start)]
        scale = norm / max(self.context(start, drawn).distance(start), 1e-12)
        return self.context(start, [scale * c for c in drawn]).detach()


class SpanContexts(FullContexts):
    """Contexts in the span of K learned directions around the start: an embodiment is a vector z of K numbers."""

    def __init__(self, prior: EmbodimentContext, rank: int, std: float = 0.02):
        super().__init__()
        if rank < 1 or not prior.tensors:
            raise ValueError(
                f"a span of contexts needs a rank of at least 1 and a TTT layer; got rank {rank} "
                f"and {len(prior.W1)} TTT layers"
            )
        self.rank = rank
        basis = nn.ParameterList(nn.Parameter(std * torch.randn(rank, *w.shape)) for w in prior.tensors)
        self.basis = cast(Sequence[Float[Tensor, "K ..."]], basis)

    def zeros(self, start: EmbodimentContext, slots: int | None = None) -> Coordinates:
        return (self.basis[0].new_zeros(self.rank if slots is None else (slots, self.rank)),)

    def context(self, start: EmbodimentContext, coordinates: Sequence[Tensor]) -> EmbodimentContext:
        (z,) = coordinates
        return start.with_tensors(
            [w + torch.tensordot(z, b, dims=1) for w, b in zip(start.tensors, self.basis, strict=True)]
        )

    def locate(self, start: EmbodimentContext, context: EmbodimentContext) -> Coordinates:
        """The vector z of a context of the span; of another, that of the nearest one in it."""
        directions_KN = torch.cat([b.flatten(1) for b in self.basis], dim=1).detach()
        moved_BN = torch.atleast_2d(context.embedding() - start.embedding()).detach()
        z_BK = torch.linalg.lstsq(directions_KN.T, moved_BN.T).solution.T
        return (z_BK if context.batched else z_BK[0],)


def make_contexts(prior: EmbodimentContext, rank: int | None) -> FullContexts:
    """`full` contexts without a rank, else a span of that rank."""
    return FullContexts() if rank is None else SpanContexts(prior, rank)
