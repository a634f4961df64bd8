"""pi0 and pi0.5 checkpoints of openpi and LeRobot: their tensor names, their sizes, a strict loader.

    model = load_openpi("checkpoints/pi05_base")

Sizes are read from the tensors, so a checkpoint of any size loads. What tensors do not tell (head_dim, the horizon, the
cameras) comes from the checkpoint's `config.json` or from the caller. Numbers agree with openpi's PyTorch model in
float32 (docs/fidelity.md).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.model import flow
from selfalign.model.policy import VLA, VLAConfig
from selfalign.model.precision import Precision
from selfalign.model.streams import StreamConfig
from selfalign.model.tensorfile import StoredTensor, open_tensors
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import SigLIPConfig
from selfalign.model.weights import check_fit, empty_model, read_json, shapes_of
from selfalign.types import Transition

# ---- names ---------------------------------------------------------------------------------------------------------

PALIGEMMA, EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
TOWER, LANGUAGE = PALIGEMMA + "model.vision_tower.", PALIGEMMA + "model.language_model."
VISION = TOWER + "vision_model."
EMBEDDING, TIED_HEAD = LANGUAGE + "embed_tokens.weight", PALIGEMMA + "lm_head.weight"
UNUSED = EXPERT + "lm_head.weight"
"""A head of the action expert that no forward pass reads."""

STEMS = {
    "vision.patch_embedding": VISION + "embeddings.patch_embedding",
    "vision.position_embedding": VISION + "embeddings.position_embedding.weight",
    "vision.blocks": VISION + "encoder.layers",
    "vision.post_norm": VISION + "post_layernorm",
    "image_proj": PALIGEMMA + "model.multi_modal_projector.linear",
    "embed_tokens": LANGUAGE + "embed_tokens",
    "mixture.vlm.blocks": LANGUAGE + "layers",
    "mixture.vlm.final_norm": LANGUAGE + "norm",
    "mixture.experts.action.blocks": EXPERT + "model.layers",
    "mixture.experts.action.final_norm": EXPERT + "model.norm",
    "state_in": "state_proj",
    "action_in": "action_in_proj",
    "action_out": "action_out_proj",
}
"""Selfalign's module -> openpi's. The time component is in `TIME_STEMS`, what lies inside of a module in `PARTS`."""

TIME_STEMS = {
    "concat": {"time.action.mlp_in": "action_time_mlp_in", "time.action.mlp_out": "action_time_mlp_out"},
    "adarms": {"time.action.mlp_in": "time_mlp_in", "time.action.mlp_out": "time_mlp_out"},
}

PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "modulation": "dense",
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj")},
}


def tensor_names(model: VLA) -> dict[str, str]:
    """Selfalign's name -> openpi's, for every parameter that openpi has too: the adapter in both directions.

    Alignment expert, TTT layers and grounding heads have no counterpart and are left out.
    """
    stems = STEMS | TIME_STEMS[model.config.time]
    names = {}
    for name, _ in model.named_parameters():
        stem = next((s for s in stems if name == s or name.startswith(s + ".")), None)
        if stem is not None and ".ttt." not in name:
            rest = [PARTS.get(part, part) for part in name[len(stem) :].split(".")]
            names[name] = stems[stem] + ".".join(rest)
    return names


def canonical_name(name: str) -> str:
    """openpi's name of a tensor in a file of openpi or LeRobot.

    LeRobot puts `model.` before every name; newer versions of transformers leave `vision_model.` out; the embedding is
    written under one of two tied names, or under both.
    """
    name = name.removeprefix("model.")
    if name.startswith(TOWER) and not name.startswith(VISION):
        name = VISION + name.removeprefix(TOWER)
    return EMBEDDING if name == TIED_HEAD else name


def _by_openpis_name(tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """openpi's name -> tensor. Two names of one tensor must hold the same numbers."""
    index: dict[str, str] = {}
    for name in sorted(tensors):
        first = index.setdefault(canonical_name(name), name)
        if first != name and not tensors[first].same_bytes(tensors[name]):
            raise ValueError(f"{source}: {first} and {name} are one tensor (tied) but hold different numbers")
    return {canonical: tensors[name] for canonical, name in index.items()}


# ---- sizes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointSettings:
    """What the tensors of a checkpoint do not tell; the defaults are openpi's."""

    head_dim: int = 256
    """Numbers of each attention head in the VLM and the experts; the count of heads follows from the tensors."""
    vision_heads: int = 16
    """Attention heads of the vision tower."""
    action_horizon: int = 50
    max_token_len: int | None = None
    """None: 48 for pi0, 200 for pi0.5."""
    cameras: tuple[str, ...] = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    """In the order in which their tokens stand in the prefix."""

    @classmethod
    def read(cls, directory: Path) -> "CheckpointSettings":
        """What `config.json` says, in openpi's words (`action_horizon`), LeRobot's (`chunk_size`), or this class's."""
        path = directory / "config.json"
        data = read_json(path) if path.is_file() else {}
        cameras = [name for name in data.get("input_features") or () if name.startswith("observation.image")]
        cameras = cameras or list(data.get("cameras") or ())
        found = {
            "head_dim": data.get("head_dim"),
            "vision_heads": data.get("vision_heads"),
            "action_horizon": data.get("action_horizon", data.get("chunk_size")),
            "max_token_len": data.get("max_token_len", data.get("tokenizer_max_length")),
            "cameras": tuple(c.removeprefix("observation.").removeprefix("images.") for c in cameras),
        }
        return cls(**{name: value for name, value in found.items() if value})


PATCH, POSITION = (VISION + f"embeddings.{part}_embedding.weight" for part in ("patch", "position"))
FC1 = VISION + "encoder.layers.0.mlp.fc1.weight"
STATE, ACTION_IN = "state_proj.weight", "action_in_proj.weight"
STACK_SIZES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], settings: CheckpointSettings = CheckpointSettings()
) -> VLAConfig:
    """The config of the plain policy whose tensors have these shapes, by openpi's names.

    Raises:
        ValueError: tensors that give the sizes are missing, or the settings do not divide them.
    """
    is_pi05 = "time_mlp_in.weight" in shapes
    needed = [PATCH, POSITION, FC1, EMBEDDING, ACTION_IN] + ([] if is_pi05 else [STATE])
    needed += [f"{s}layers.0.{part}.weight" for s in (LANGUAGE, EXPERT + "model.") for part in STACK_SIZES]
    found = {name: shapes[name] for name in needed if name in shapes}
    check_fit(dict.fromkeys(needed, ()) | found, found, "the checkpoint", "pi0 or pi0.5")
    action_dim = shapes[ACTION_IN][1]
    return VLAConfig(
        vlm=_stream(shapes, LANGUAGE, settings),
        action=_stream(shapes, EXPERT + "model.", settings),
        alignment=None,
        ttt=TTTConfig(positions="none"),
        vision=_tower(shapes, settings),
        vocab_size=shapes[EMBEDDING][0],
        max_token_len=settings.max_token_len or (200 if is_pi05 else 48),
        cameras=settings.cameras,
        state_dim=action_dim if is_pi05 else shapes[STATE][1],
        action_dim=action_dim,
        action_horizon=settings.action_horizon,
        time="adarms" if is_pi05 else "concat",
        state_token=not is_pi05,
    )


def _tower(shapes: Mapping[str, tuple[int, ...]], settings: CheckpointSettings) -> SigLIPConfig:
    patch_size = shapes[PATCH][-1]
    return SigLIPConfig(
        width=_divided(shapes[PATCH][0], settings.vision_heads, "the vision tower's width", "vision_heads"),
        mlp_dim=shapes[FC1][0],
        depth=_depth(shapes, VISION + "encoder."),
        num_heads=settings.vision_heads,
        patch_size=patch_size,
        image_size=math.isqrt(shapes[POSITION][0]) * patch_size,
    )


def _stream(shapes: Mapping[str, tuple[int, ...]], stack: str, settings: CheckpointSettings) -> StreamConfig:
    q, k, up = (shapes[f"{stack}layers.0.{part}.weight"] for part in STACK_SIZES)
    for rows, what in ((q[0], "rows of q_proj"), (k[0], "rows of k_proj")):
        _divided(rows, settings.head_dim, what, "head_dim")
    return StreamConfig(
        width=q[1],
        mlp_dim=up[0],
        depth=_depth(shapes, stack),
        num_heads=q[0] // settings.head_dim,
        num_kv_heads=k[0] // settings.head_dim,
        head_dim=settings.head_dim,
    )


def _depth(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    prefix = stack + "layers."
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in shapes if name.startswith(prefix))


def _divided(size: int, by: int, what: str, setting: str) -> int:
    """`size`, checked to be a multiple of a setting."""
    if size % by:
        raise ValueError(f"{what}, {size}, is no multiple of {setting}={by}: give the checkpoint's own {setting}")
    return size


def checkpoint_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors by openpi's names, read from the file's header alone.

    Raises:
        FileNotFoundError: there is no `model.safetensors`.
        ValueError: the file is damaged.
    """
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a checkpoint: it has no model.safetensors")
    with open_tensors(path) as file:
        return {canonical_name(name): shape for name, shape in shapes_of(file).items()}


# ---- loading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """An open checkpoint of a plain policy: its config, and its tensors under Selfalign's names."""

    config: VLAConfig
    tensors: Mapping[str, StoredTensor]
    unused_head: StoredTensor | None
    """The action expert's `lm_head`, where the file has one."""


@contextmanager
def open_plain(directory: str | Path, config: VLAConfig | None = None, **settings: Any) -> Iterator[Plain]:
    """Open the checkpoint of openpi or LeRobot in `directory` without reading its weights; see `load_openpi`."""
    directory = Path(directory)
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not an openpi or LeRobot checkpoint: it has no model.safetensors")
    unknown = settings.keys() - {field.name for field in fields(CheckpointSettings)}
    if unknown:
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    with open_tensors(path) as file:
        tensors = _by_openpis_name(file, str(path))
        unused = tensors.pop(UNUSED, None)
        if config is None:
            config = infer_config(shapes_of(tensors), replace(CheckpointSettings.read(directory), **settings))
        with torch.device("meta"):
            model = VLA(config)
        parameters, names = dict(model.named_parameters()), tensor_names(model)
        check_fit({theirs: parameters[ours].shape for ours, theirs in names.items()}, shapes_of(tensors), str(path))
        _require_plain(model, names)
        yield Plain(config, {ours: tensors[theirs] for ours, theirs in names.items()}, unused)


def load_openpi(
    directory: str | Path,
    config: VLAConfig | None = None,
    *,
    precision: Precision = "float32",
    **settings: Any,
) -> VLA:
    """Build the plain policy of an openpi or LeRobot checkpoint and load its weights, strictly.

    Tensors are read one at a time: the peak of memory is the model and its largest tensor.

    Args:
        directory: holds `model.safetensors`, and `config.json` where there is one.
        config: the model's config; None infers it from the tensors.
        precision: of the model, whatever the file's is; "bf16" keeps norms and in/out projections in float32.
        settings: fields of `CheckpointSettings`, before what `config.json` says.

    Raises:
        FileNotFoundError: there is no `model.safetensors`.
        ValueError: the file is damaged, or tensors are missing, unexpected, wrongly shaped, or tied but different.
    """
    with open_plain(directory, config, **settings) as plain:
        model = empty_model(plain.config, precision)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(plain.tensors[name].tensor())
    return model.eval()


def _require_plain(model: VLA, names: Mapping[str, str]) -> None:
    extra = [name for name, _ in model.named_parameters() if name not in names]
    if extra:
        raise ValueError(
            f"the config has {len(extra)} parameters that a pi0 checkpoint does not hold ({extra[0]}, ...): "
            "load the plain policy, then use selfalign.model.upgrade"
        )


def written_names(model: VLA) -> dict[str, str]:
    """Selfalign's name -> the name in openpi's file, the tied embedding as openpi writes it (`paligemma.lm_head`)."""
    written = {EMBEDDING: TIED_HEAD}
    return {ours: written.get(theirs, theirs) for ours, theirs in tensor_names(model).items()}


def openpi_tensors(model: VLA) -> dict[str, Tensor]:
    """The parameters under the names that openpi's file has."""
    parameters = dict(model.named_parameters())
    return {theirs: parameters[ours].detach() for ours, theirs in written_names(model).items()}


# ---- one call ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowOutputs:
    """What a policy computes for given noise and time."""

    loss: Float[Tensor, "B H A"]
    """Squared error of the velocity, unreduced."""
    velocity: Float[Tensor, "B H A"]
    """v_t."""
    actions: Float[Tensor, "B H A"]
    """Sampled, normalised."""


@torch.no_grad()
def run_checkpoint(
    directory: str | Path,
    batch: Transition,
    *,
    noise: Float[Tensor, "B H A"],
    time: Float[Tensor, " B"],
    sample_noise: Float[Tensor, "B H A"] | None = None,
    num_steps: int = 10,
    config: VLAConfig | None = None,
    **settings: Any,
) -> FlowOutputs:
    """Build a checkpoint's model, load it, and compute loss, v_t and actions: everything a comparison needs.

    Args:
        batch: normalised observation and actions.
        noise, time: of x_t = time * noise + (1 - time) * actions.
        sample_noise: x at time 1 for the sampler; None uses `noise`.
        num_steps: Euler steps of the sampler.
        config, settings: as in `load_openpi`.
    """
    model = load_openpi(directory, config, **settings)
    observation, actions = batch.observation, batch.actions.values
    prefix = model.prefix(observation)
    noisy = flow.interpolate(actions, noise, time)
    velocity = model.action_velocity(observation.state, noisy, time, prefix, None)
    start = noise if sample_noise is None else sample_noise
    sampled = model.sample_actions(observation, noise=start, num_steps=num_steps, prefix=prefix)
    return FlowOutputs((flow.velocity(actions, noise) - velocity).square(), velocity, sampled)
