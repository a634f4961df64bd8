"""A plain policy becomes a self-aligning one: alignment expert and TTT layers are added, nothing is lost.

plain = load_openpi("checkpoints/pi0_base")
aligned = upgrade(plain, presets.pi0_aligned(alpha=0.0))
aligned.sample_actions(...)     # with alpha = 0, plain's actions to the last bit
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfalign.model.config import VLAConfig
from selfalign.model.losses import ACTION, ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.precision import precision_of
from selfalign.model.vision import SigLIPConfig
from selfalign.model.weights import check_fit, empty_model, shapes_of, unique_tensors


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
    given = unique_tensors(plain)
    added = additions(config, shapes_of(given), copy_expert=copy_expert)
    model = empty_model(config, precision_of(plain))
    for name, tensor in unique_tensors(model).items():
        source = added.copies.get(name, name)
        tensor.copy_(given[source] if source in given else added.fresh[source])
    return model.eval()


@dataclass(frozen=True)
class Additions:
    """What an upgraded policy has beside the plain one's tensors. Names are Selfalign's."""

    copies: Mapping[str, str]
    """New tensor -> the plain policy's tensor that it starts as."""
    fresh: Mapping[str, Tensor]
    """New tensor -> its initial value, float32."""


def additions(config: VLAConfig, given: Mapping[str, tuple[int, ...]], *, copy_expert: bool) -> Additions:
    """The tensors of the model of `config` that a plain policy with tensors of the shapes `given` does not have.

    Fresh values are drawn from torch's global generator. The full model is never built: memory is that of the new
    parts.

    Raises:
        ValueError: as in `upgrade`.
    """
    with torch.device("meta"):
        model = VLA(config)
    shapes = shapes_of(unique_tensors(model))
    kept = {name: shapes[name] for name in given.keys() & shapes.keys()}
    check_fit(kept, given, "the plain policy", "the upgraded one")
    copies = _copies(model) if copy_expert else {}
    lone = sorted(set(copies.values()) - given.keys())
    if lone:
        raise ValueError(f"the plain policy has no {lone[0]} to copy to the alignment expert")
    fresh = _fresh(config, shapes.keys() - given.keys() - copies.keys(), copy_expert)
    check_fit({n: shapes[n] for n in fresh}, shapes_of(fresh), "what is fresh")
    return Additions(copies, fresh)


def _fresh(config: VLAConfig, names: Collection[str], copy_expert: bool) -> dict[str, Tensor]:
    """Initial values of these tensors, from a model in which all other parts are as small as they can be."""
    vision, alignment = config.vision, config.alignment
    if isinstance(vision, SigLIPConfig):
        vision = replace(vision, depth=1, mlp_dim=1)
    least = {"mlp_dim": 1}
    if alignment is None or copy_expert:  # a random alignment expert keeps its heads, and all streams agree on them
        least |= {"num_heads": 1, "num_kv_heads": 1}
        alignment = None if alignment is None else replace(alignment, **least)
    stub = replace(
        config,
        vlm=replace(config.vlm, **least, width=config.vlm.width if config.grounding else 1),
        action=replace(config.action, **least),
        alignment=alignment,
        vision=vision,
        vocab_size=1,
    )
    return {name: tensor for name, tensor in unique_tensors(VLA(stub)).items() if name in names}


def _copies(model: VLA) -> dict[str, str]:
    """Tensor of the alignment expert -> the action expert's, layer by layer of the VLM; TTT layers are shared."""
    config = model.config
    if config.alignment is None:
        raise ValueError("the config has no alignment expert to copy the action expert to")
    layers = {depth: i for i, depth in enumerate(config.action.vlm_layers())}
    missing = set(config.alignment.vlm_layers()) - layers.keys()
    if missing:
        raise ValueError(f"no layer of the action expert reads the VLM's layers {sorted(missing)}: nothing to copy")
    ours, theirs = f"mixture.experts.{ALIGNMENT}.", f"mixture.experts.{ACTION}."
    stems = {
        f"{ours}blocks.{i}.": f"{theirs}blocks.{layers[depth]}."
        for i, depth in enumerate(config.alignment.vlm_layers())
    }
    stems |= {f"{ours}final_norm.": f"{theirs}final_norm.", f"time.{ALIGNMENT}.": f"time.{ACTION}."}
    copies = {}
    for name, _ in model.named_parameters():
        stem = next((s for s in stems if name.startswith(s)), None)
        if stem is not None and not name.removeprefix(stem).startswith("ttt."):
            copies[name] = stems[stem] + name.removeprefix(stem)
    return copies
