"""A plain policy becomes a self-aligning one: alignment expert and TTT layers are added, nothing is lost.

plain = load_openpi("checkpoints/pi0_base")
aligned = upgrade(plain, presets.pi0_aligned(alpha=0.0))
aligned.sample_actions(...)     # with alpha = 0, plain's actions to the last bit
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from selfalign.model.policy import ACTION, ALIGNMENT, VLA, VLAConfig
from selfalign.model.weights import check_fit


@torch.no_grad()
def upgrade(plain: VLA, config: VLAConfig, *, copy_expert: bool = True) -> VLA:
    """The model of `config` with `plain`'s weights, and fresh ones where `plain` has none.

    Args:
        plain: a policy without alignment expert, for example an openpi checkpoint.
        config: the same policy with one; `config.ttt.alpha_init` is 0 (the TTT layers are absent at first, and the
            actions stay plain's bit for bit) or small (0.1: W gets a gradient).
        copy_expert: start the alignment expert as a copy of the action expert, each layer from the one that reads the
            same VLM layer; otherwise it starts at random.

    A config with a state token that `plain` lacks (`pi05_aligned`) gets a fresh one: such a policy acts as before only
    after training.

    Raises:
        ValueError: a parameter of `plain` is not in the model or has another shape; or a layer has none to copy.
    """
    model = VLA(config).to(next(plain.parameters()).dtype)
    own, given = dict(model.named_parameters()), dict(plain.named_parameters())
    kept = {name: own[name].shape for name in given.keys() & own.keys()}
    check_fit(kept, {name: p.shape for name, p in given.items()}, "the plain policy", "the upgraded one")
    for name, parameter in given.items():
        own[name].copy_(parameter)
    if copy_expert:
        _copy_expert(model, own)
    return model.eval()


def _copy_expert(model: VLA, own: Mapping[str, Tensor]) -> None:
    """Alignment expert := action expert, layer by layer of the VLM."""
    config = model.config
    if config.alignment is None:
        raise ValueError("the config has no alignment expert to copy the action expert to")
    layers = {depth: i for i, depth in enumerate(config.action.vlm_layers())}
    missing = set(config.alignment.vlm_layers()) - layers.keys()
    if missing:
        raise ValueError(f"no layer of the action expert reads the VLM's layers {sorted(missing)}: nothing to copy")
    action, alignment = model.mixture.experts[ACTION], model.mixture.experts[ALIGNMENT]
    pairs = [
        (action.blocks[layers[d]], b) for d, b in zip(config.alignment.vlm_layers(), alignment.blocks, strict=True)
    ]
    pairs += [(action.final_norm, alignment.final_norm), (model.time[ACTION], model.time[ALIGNMENT])]
    for source, target in pairs:
        for (_, value), (_, parameter) in zip(_own(source), _own(target), strict=True):
            parameter.copy_(value)


def _own(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters by name, without the shared TTT layer."""
    return sorted((n, p) for n, p in module.named_parameters() if not n.startswith("ttt."))
