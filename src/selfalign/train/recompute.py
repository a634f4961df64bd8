"""Gradient checkpointing: less memory for more time, applied from outside, so that the model knows nothing of it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from selfalign.model.policy import VLA
from selfalign.model.vision import SigLIP


def recompute_blocks(model: VLA, on: bool = True) -> VLA:
    """Keep only the inputs of each transformer block for the backward pass and run the block again there.

    Covers the vision tower (SigLIP), the VLM and all experts, each block once: nothing is recomputed twice. Gradients
    are the same. Without gradients (sampling) the blocks run as they are. It can be switched at any time; the last VLM
    layer, of which only keys and values are computed, is no block in this sense.
    """
    for block in blocks(model):
        block.__dict__.pop("forward", None)
        if on:
            block.forward = partial(_recomputed, block)
    return model


def blocks(model: VLA) -> Iterator[nn.Module]:
    """The transformer blocks of tower and streams."""
    if isinstance(model.vision, SigLIP):
        yield from model.vision.blocks
    for stream in (model.mixture.vlm, *model.mixture.experts.values()):
        yield from stream.blocks


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    # Blocks draw no random numbers, so there is no generator's state to keep.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
