"""The contrastive loss: contexts of one body under two appearances lie close, those of perturbed bodies apart.

A group of slots lives and dies together: an anchor; the positive, the same body seen in other colours; and K negatives,
the same recordings through other action and state frames. What is compared is how far alignment has taken each
context from W0. In rehearsal, which is first order, the loss moves the contexts of the slots and the span of contexts.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from selfalign.align.settings import ContrastiveConfig
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources
from selfalign.model.losses import Losses


def info_nce(
    anchor: Float[Tensor, "G N"],
    positive: Float[Tensor, "G N"],
    negatives: Float[Tensor, "G K N"],
    temperature: float = 0.07,
) -> Float[Tensor, " G"]:
    """InfoNCE (arXiv 1807.03748) on cosine similarities: `-log softmax([a p, a n_1, ..., a n_K] / temperature)[0]`."""
    others = torch.cat([positive[:, None], negatives], dim=1)
    similarity = F.cosine_similarity(anchor[:, None], others, dim=-1) / temperature
    return -similarity.log_softmax(-1)[:, 0]


def add_contrast(
    losses: Losses, ways: Float[Tensor, "S N"], moved: Bool[np.ndarray, " S"], config: ContrastiveConfig
) -> Losses:
    """The losses with the contrastive one, a mean over those groups of slots that have left W0.

    Args:
        ways: from W0 to each slot's context, group after group.
        moved: which slots have left W0.
    """
    groups = ways.unflatten(0, (-1, config.group))[torch.from_numpy(moved[:: config.group])]
    nce = info_nce(groups[:, 0], groups[:, 1], groups[:, 2:], config.temperature)
    loss = nce.sum() / max(1, len(groups))
    return replace(losses, total=losses.total + config.weight * loss, contrastive=loss)


def contrast_group(
    body: VirtualEmbodiment, sources: VirtualSources, config: ContrastiveConfig, rng: np.random.Generator, width: float
) -> list[VirtualEmbodiment]:
    """The anchor, its positive and its negatives; the anchor alone where there is no contrast."""
    if not config.weight:
        return [body]
    rig = sources.cache.embodiments[body.rig]
    others = [sources.draw(rng, rig, width) for _ in range(config.negatives)]
    negatives = [sources.embodiment(body.rig, perturbation, body.play_episodes, body.units) for perturbation in others]
    return [body, replace(body, look=1), *negatives]
