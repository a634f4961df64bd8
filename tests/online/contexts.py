"""Contexts of one number, so that a test can tell which one it has."""

import torch

from selfalign.model.context import ContextInfo, EmbodimentContext


def make_context(value: float, fingerprint: str = "abc") -> EmbodimentContext:
    info = ContextInfo("arm", fingerprint=fingerprint, norm_stats={"mode": "zscore"})
    return EmbodimentContext((torch.full((2, 3, 3), value),), (torch.full((2, 1, 3), -value),), info)


def value(context: EmbodimentContext) -> float:
    """All numbers of a context of `make_context`, which must be alike."""
    (number,) = set(torch.cat([context.W1[0].flatten(), -context.b1[0].flatten()]).tolist())
    return round(number, 4)
