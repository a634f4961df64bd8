"""LoRA (arXiv 2106.09685) through `peft`: low-rank updates of the blocks' matrices, merged in what is exported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from selfalign.model.policy import VLA
from selfalign.train.parts import Part, part_of

_ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """Which parts learn through low-rank updates; their own parameters stay as they are."""

    rank: int = 0
    """Of the updates; 0: no LoRA."""
    alpha: int = 16
    """The updates are scaled by alpha / rank."""
    parts: tuple[Part, ...] = ("vlm",)
    """Of "vlm", "action", "alignment" and "ttt"; the other parts train as usual."""

    def __post_init__(self) -> None:
        if self.rank < 0 or (self.rank and not self.parts):
            raise ValueError(f"LoRA needs a rank of at least 0 and parts to adapt, got {self.rank} and {self.parts}")


def add_lora(model: VLA, settings: LoraSettings) -> VLA:
    """Put adapters on the matrices of the blocks of some parts, in place. They start as no update at all.

    Raises:
        ImportError: peft is not installed.
        ValueError: a part has no blocks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the extra `lora`: pip install 'selfalign[lora]'") from error
    names = {module: name for name, module in model.named_modules()}
    streams = (block for stream in (model.mixture.vlm, *model.mixture.experts.values()) for block in stream.blocks)
    inside = {linear for block in streams for linear in block.modules() if isinstance(linear, nn.Linear)}
    targets = [names[linear] for linear in inside if part_of(f"{names[linear]}.weight") in settings.parts]
    without = sorted(set(settings.parts) - {part_of(f"{name}.weight") for name in targets})
    if without:
        raise ValueError(f"LoRA adapts the matrices of the streams' blocks; {', '.join(without)} has none")
    trained = {name for name, p in model.named_parameters() if p.requires_grad and part_of(name) not in settings.parts}
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,  # recomputed blocks would draw another one (`train.recompute`)
        target_modules=sorted(targets),
    )
    inject_adapter_in_model(adapters, model, _ADAPTER)
    for name, parameter in model.named_parameters():  # peft has frozen all that is no adapter
        parameter.requires_grad_(".lora_" in name or name in trained)
    return model


def has_lora(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model with adapters as those of the model without: `W + alpha / rank * B A`.

    Args:
        tensors: by the names of `model`, adapters among them.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    scales = {name: cast(Mapping[str, float], module.scaling)[_ADAPTER] for name, module in adapted.items()}
    plain = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            a, b = (tensors[f"{owner}.lora_{letter}.{_ADAPTER}.weight"] for letter in "AB")
            tensor = tensor + scales[owner] * (b @ a)
        if ".lora_" not in name:
            plain[name.replace(".base_layer.", ".")] = tensor
    return plain
