"""The parts of a model by what they do: whose gradients the log tells apart, and what can be frozen."""

import re
from collections.abc import Collection
from typing import Literal, get_args

from torch import nn

Part = Literal["vision", "vlm", "action", "alignment", "ttt", "prior"]
"""Vision tower with its connector; VLM; action expert; alignment expert; the slow weights of the TTT layers, which both
experts share; and what fits start from: W0 (with the span of contexts and the latent prompt, where there are such)."""

_NAMES: tuple[tuple[Part, str], ...] = (
    ("prior", r".*\.ttt\.(W1|b1)$|contexts\.|mixture\.prompt\."),
    ("ttt", r".*\.ttt\."),
    ("vision", r"vision\.|image_proj\."),
    ("vlm", r"mixture\.vlm\.|embed_tokens\.|grounding\."),
    ("action", r"mixture\.experts\.action\.|time\.action\.|state_in\.|action_in\.|action_out\."),
    ("alignment", r"mixture\.experts\.alignment\.|time\.alignment\.|alignment\."),
)


def part_of(name: str) -> Part:
    """The part that a parameter of `VLA` belongs to, by its name."""
    for part, pattern in _NAMES:
        if re.match(pattern, name):
            return part
    raise ValueError(f"parameter {name} belongs to none of the parts {', '.join(get_args(Part))}")


def trainable_by_part(model: nn.Module) -> dict[Part, list[nn.Parameter]]:
    """The parameters that require gradients; parts without any are left out."""
    found: dict[Part, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(part_of(name), []).append(parameter)
    return found


def freeze(model: nn.Module, parts: Collection[Part]) -> None:
    """Take some parts out of the training; contexts of rehearsal move all the same.

    Raises:
        ValueError: an unknown part, or nothing would be left to train.
    """
    unknown = sorted(set(parts) - set(get_args(Part)))
    if unknown:
        raise ValueError(f"no part {', '.join(unknown)} to freeze; there are: {', '.join(get_args(Part))}")
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if parts and not trainable_by_part(model):
        raise ValueError(f"with {', '.join(sorted(parts))} frozen there is nothing left to train")
