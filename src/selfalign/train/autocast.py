"""Mixed precision: bfloat16 products over float32 weights, where `model.precision` has bfloat16 matrices."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from selfalign.model.policy import VLA
from selfalign.model.precision import bulk
from selfalign.model.vision import KeypointTower

Precision = Literal["float32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Where a forward pass runs."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def keep_float32(model: VLA, device: torch.device) -> VLA:
    """Make autocast leave alone what stays float32 in bf16, from outside: the model knows nothing of it.

    That is W with all of the TTT layers but their theta matrices, the projections between tokens and the world, the
    modulation of adaRMS, and a keypoint tower (`model.precision` says why).
    """
    large = {module for part in bulk(model) for module in part.modules()}
    for layer in model.ttt_layers:
        _switch(layer, device, enabled=False)
        for theta in (layer.theta_q, layer.theta_k, layer.theta_v, layer.theta_o):
            _switch(theta, device, enabled=True)
    for module in model.modules():
        if isinstance(module, KeypointTower) or (isinstance(module, nn.Linear) and module not in large):
            _switch(module, device, enabled=False)
    return model


def _switch(module: nn.Module, device: torch.device, *, enabled: bool) -> None:
    module.forward = partial(_forward, module.forward, device.type, enabled)


def _forward(run: Any, device: str, enabled: bool, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
        return run(x if enabled else x.float(), *args, **kwargs)
