"""pi0 and pi0.5 checkpoints of openpi and LeRobot: their sizes, a strict loader, and all numbers in one call.

    model = load_openpi("checkpoints/pi05_base")

Sizes are read from the tensors, so a checkpoint of any size loads. What tensors do not tell (head_dim, the horizon, the
cameras) comes from the checkpoint's `config.json` or from the caller. Numbers agree with openpi's PyTorch model in
float32 (docs/fidelity.md).
"""

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.model import flow
from selfalign.model.config import VLAConfig
from selfalign.model.openpi_names import (
    EMBEDDING,
    EXPERT,
    LANGUAGE,
    UNUSED,
    VISION,
    canonical_name,
    tensor_names,
    written_names,
)
from selfalign.model.policy import VLA
from selfalign.model.precision import Precision
from selfalign.model.streams import StreamConfig
from selfalign.model.tensorfile import StoredTensor, open_tensors
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import SigLIPConfig
from selfalign.model.weights import check_fit, empty_model, read_json, shapes_of
from selfalign.types import Transition

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
    discrete_state_input: bool = True
    """Prompts of pi0.5 tell the state; False: nothing does, as in openpi's `pi05_libero`."""

    def __post_init__(self) -> None:
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.type in (int, int | None)}
        wrong = [f"{n}={v!r}" for n, v in counts.items() if v is not None and not (isinstance(v, int) and v > 0)]
        if wrong:
            raise ValueError(f"settings of a checkpoint must be whole numbers above 0, got {', '.join(wrong)}")
        if not isinstance(self.discrete_state_input, bool):
            raise ValueError(f"discrete_state_input must be true or false, got {self.discrete_state_input!r}")

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
        told = {name: value for name, value in found.items() if value}
        return cls(**told, discrete_state_input=data.get("discrete_state_input", True))


PATCH, POSITION = (VISION + f"embeddings.{part}_embedding.weight" for part in ("patch", "position"))
STATE, ACTION_IN, ACTION_OUT = (f"{name}_proj.weight" for name in ("state", "action_in", "action_out"))
ACTION_BIAS = "action_out_proj.bias"
ENCODER, EXPERT_STACK = VISION + "encoder.", EXPERT + "model."
STREAM_SIZES = {
    "width": (("self_attn.q_proj", 1), ("self_attn.o_proj", 0), ("mlp.up_proj", 1), ("mlp.down_proj", 0)),
    "mlp_dim": (("mlp.up_proj", 0), ("mlp.gate_proj", 0), ("mlp.down_proj", 1)),
}
"""Size of a stream -> the matrices of each layer that tell it, and on which axis."""
HEADS = {
    "num_heads": (("self_attn.q_proj", 0), ("self_attn.o_proj", 1)),
    "num_kv_heads": (("self_attn.k_proj", 0), ("self_attn.v_proj", 0)),
}
"""The same for the heads' numbers, in which both streams agree."""
TOWER_SIZES = {
    "width": (("self_attn.q_proj", 1), ("mlp.fc1", 1), ("mlp.fc2", 0)),
    "mlp_dim": (("mlp.fc1", 0), ("mlp.fc2", 1)),
}


def infer_config(
    shapes: Mapping[str, tuple[int, ...]],
    settings: CheckpointSettings = CheckpointSettings(),
    source: str = "the checkpoint",
) -> VLAConfig:
    """The config of the plain policy whose tensors have these shapes, by openpi's names.

    A size is what most tensors say, so that a damaged one is not taken for the model's.

    Args:
        source: what errors call the checkpoint.

    Raises:
        ValueError: tensors do not fit each other (see `check_fit`), or the settings do not divide the sizes.
    """
    shapes = {name: shape for name, shape in shapes.items() if name != UNUSED}
    of_pi05 = sum(name.startswith("time_mlp_") or ".dense." in name for name in shapes)
    is_pi05 = of_pi05 > sum(name.startswith(("state_proj.", "action_time_mlp_")) for name in shapes)
    vlm, expert = _streams(shapes, settings)
    action_dim = _most(shapes, ((ACTION_IN, 1), (ACTION_OUT, 0), (ACTION_BIAS, 0))) or 1
    config = VLAConfig(
        vlm=vlm,
        action=expert,
        alignment=None,
        ttt=TTTConfig(positions="none"),
        vision=_tower(shapes, settings),
        vocab_size=_most(shapes, ((EMBEDDING, 0),)) or 1,
        max_token_len=settings.max_token_len or (200 if is_pi05 else 48),
        cameras=settings.cameras,
        state_dim=action_dim if is_pi05 else _most(shapes, ((STATE, 1),)) or 1,
        action_dim=action_dim,
        action_horizon=settings.action_horizon,
        time="adarms" if is_pi05 else "concat",
        state_token=not is_pi05,
        discrete_state_input=settings.discrete_state_input or not is_pi05,
    )
    _fitting(config, shapes, source)
    return config


def _fitting(config: VLAConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> VLA:
    """The model without memory, whose parameters have these shapes by openpi's names; otherwise `ValueError`."""
    with torch.device("meta"):
        model = VLA(config)
    expected = {theirs: model.get_parameter(ours).shape for ours, theirs in tensor_names(model).items()}
    check_fit(expected, shapes, source, "pi0" if config.time == "concat" else "pi0.5")
    return model


def _tower(shapes: Mapping[str, tuple[int, ...]], settings: CheckpointSettings) -> SigLIPConfig:
    depth, heads = _depth(shapes, ENCODER), settings.vision_heads
    sizes = {name: _most(shapes, _in_layers(ENCODER, depth, told)) for name, told in TOWER_SIZES.items()}
    patch_size = shapes[PATCH][-1] if len(shapes.get(PATCH, ())) == 4 else 1
    return SigLIPConfig(
        width=_divided(sizes["width"] or heads, heads, "the vision tower's width", "vision_heads"),
        mlp_dim=sizes["mlp_dim"] or 1,
        depth=depth,
        num_heads=heads,
        patch_size=patch_size,
        image_size=math.isqrt(_most(shapes, ((POSITION, 0),)) or 1) * patch_size,
    )


def _streams(shapes: Mapping[str, tuple[int, ...]], settings: CheckpointSettings) -> tuple[StreamConfig, StreamConfig]:
    """VLM and action expert, which are equally deep and have the same heads."""
    stacks, size = (LANGUAGE, EXPERT_STACK), settings.head_dim
    depth = max(_depth(shapes, stack) for stack in stacks)
    heads: dict[str, Any] = {"head_dim": size}
    for name, told in HEADS.items():
        rows = _most(shapes, (m for stack in stacks for m in _in_layers(stack, depth, told))) or size
        heads[name] = _divided(rows, size, f"rows of {told[0][0]}", "head_dim") // size
    vlm, expert = (
        {name: _most(shapes, _in_layers(stack, depth, told)) or 1 for name, told in STREAM_SIZES.items()}
        for stack in stacks
    )
    return (
        StreamConfig(vlm["width"], vlm["mlp_dim"], depth, **heads),
        StreamConfig(expert["width"], expert["mlp_dim"], depth, **heads),
    )


def _in_layers(stack: str, depth: int, told: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The matrices of all layers of a stack."""
    return ((f"{stack}layers.{i}.{part}.weight", axis) for i in range(depth) for part, axis in told)


def _most(shapes: Mapping[str, tuple[int, ...]], told: Iterable[tuple[str, int]]) -> int | None:
    """The size that most of these matrices (or biases) have on that axis; None where there is none of them."""
    found = [shapes[n][axis] for n, axis in told if len(shapes.get(n, ())) == (1 if n.endswith(".bias") else 2)]
    return statistics.mode(found) if found else None


def _depth(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    """Layers of a stack, at least 1; a damaged number cannot ask for more of them than there are tensors."""
    layers = [re.match(r"(\d+)\.", name.removeprefix(stack + "layers.")) for name in shapes if name.startswith(stack)]
    return 1 + max((min(int(found[1]), len(layers)) for found in layers if found), default=0)


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


def _by_openpis_name(tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """openpi's name -> tensor. Two names of one tensor must hold the same numbers."""
    index: dict[str, str] = {}
    for name in sorted(tensors):
        first = index.setdefault(canonical_name(name), name)
        if first != name and not tensors[first].same_bytes(tensors[name]):
            raise ValueError(f"{source}: {first} and {name} are one tensor (tied) but hold different numbers")
    return {canonical: tensors[name] for canonical, name in index.items()}


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
        shapes = shapes_of(tensors)
        if config is None:
            config = infer_config(shapes, replace(CheckpointSettings.read(directory), **settings), str(path))
        model = _fitting(config, shapes, str(path))
        names = tensor_names(model)
        _require_plain(model, names)
        _require_floats(tensors, str(path))
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


def _require_floats(tensors: Mapping[str, StoredTensor], source: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{source}: {name} is {tensor.dtype}; weights are floating-point numbers")


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

    Raises:
        ValueError: as in `load_openpi`; or actions, noise or time have another shape.
    """
    model = load_openpi(directory, config, **settings)
    observation, actions = batch.observation, batch.actions.values
    start = noise if sample_noise is None else sample_noise
    shape = (observation.batch_size, actions.shape[1], model.config.action_dim)
    for name, tensor, expected in (
        ("actions", actions, shape),
        ("noise", noise, shape),
        ("time", time, shape[:1]),
        ("sample_noise", start, shape),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {list(expected)}, got {list(tensor.shape)}")
    prefix = model.prefix(observation)
    noisy = flow.interpolate(actions, noise, time)
    velocity = model.action_velocity(observation.state, noisy, time, prefix, None)
    sampled = model.sample_actions(observation, noise=start, num_steps=num_steps, prefix=prefix)
    return FlowOutputs((flow.velocity(actions, noise) - velocity).square(), velocity, sampled)
