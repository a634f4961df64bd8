"""Numbers that say whether pretraining is on the way to contexts that help."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfalign.align.batches import Batches
from selfalign.data.virtual import VirtualEmbodiment
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.train.parallel import whole


def mean_tanh_alpha(model: VLA) -> float:
    """How far the TTT branches are open, on average over layers and channels; 0 means that W is not read."""
    alphas = [whole(layer.alpha.detach()) for layer in model.ttt_layers]
    return float(torch.cat(alphas).tanh().abs().mean()) if alphas else 0.0


def gradient_cosine(
    batches: Batches, bodies: Sequence[VirtualEmbodiment], contexts: EmbodimentContext, step: int
) -> float:
    """The cosine between the gradients of the action loss and of the alignment losses by W, on average over slots.

    Above zero, a step of alignment lowers the action loss too: what rehearsal is for. Measured on a batch of its own.

    Args:
        bodies: all slots' embodiments.
        contexts: those of this process's slots, `[slots, ...]`.
        step: seeds the batch.
    """
    if not contexts.tensors:
        return 0.0
    config, leaf = batches.config, contexts.leaf()
    with aside([config.seed, 17, step]) as rng:
        batch = batches.draw_from(bodies, rng)
        aligning = batches.alignment_losses(batch, leaf).total
        acting = batches.action_losses(batch, leaf).action
    assert acting is not None
    for_alignment, for_action = (
        _rows(torch.autograd.grad(x, leaf.tensors, allow_unused=True, materialize_grads=True))
        for x in (aligning, acting)
    )
    return float(F.cosine_similarity(for_alignment, for_action, dim=1).mean())


@contextmanager
def aside(seed: list[int]) -> Iterator[np.random.Generator]:
    """Random numbers of a measurement beside the training: torch's generator is seeded, and afterwards as it was.

    Compiled functions run as they are written: a measurement's shapes are worth no compilation.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(int(rng.integers(2**62)))
        yield rng


def _rows(tensors: tuple[Tensor, ...]) -> Tensor:
    """`[slots, ...]` tensors as one vector a slot."""
    return torch.cat([t.flatten(1) for t in tensors], dim=1)
