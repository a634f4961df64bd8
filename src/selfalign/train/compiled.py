"""torch.compile, applied from outside."""

import torch

from selfalign.model.policy import VLA


def compile_streams(model: VLA) -> VLA:
    """Compile what runs through the transformers, in place: the prefix, and the experts over it."""
    for run in ("prefix", "suffix"):
        setattr(model.mixture, run, torch.compile(getattr(model.mixture, run)))
    return model
