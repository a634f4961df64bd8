"""`selfalign convert`: a checkpoint of openpi, LeRobot or Selfalign as another one's, or as a self-aligning policy.

Weights pass chunk by chunk and keep their bits and their type, so a checkpoint larger than memory can be converted. The
new directory appears when it is whole.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional

from selfalign import presets
from selfalign.acting import Acting
from selfalign.checkpoint import CheckpointInfo
from selfalign.data import lerobot_policy
from selfalign.data.normalize import NormStats
from selfalign.data.pretrained import Kind, check_settings, kind_of, read_stats, write_openpi
from selfalign.model.config import VLAConfig, fingerprint
from selfalign.model.openpi import CheckpointSettings, open_plain
from selfalign.model.openpi_names import UNUSED, written_names
from selfalign.model.policy import VLA
from selfalign.model.tensorfile import StoredTensor, open_tensors, write_tensors
from selfalign.model.ttt import TTTConfig
from selfalign.model.upgrade import additions
from selfalign.model.weights import (
    check_fit,
    config_to_dict,
    load_config,
    new_directory,
    shapes_of,
    unique_tensors,
    write_json,
)
from selfalign.settings import AlignSettings

Target = Literal["selfalign", "openpi", "lerobot", "pi0_aligned", "pi05_aligned"]
ALIGNED = {"pi0_aligned": "concat", "pi05_aligned": "adarms"}
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ConvertConfig:
    """Write a checkpoint of openpi, LeRobot or Selfalign as another one's, or make it self-aligning."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="SRC")]
    """Checkpoint directory of openpi (PyTorch), LeRobot (pi0, pi0.5) or Selfalign."""
    destination: Annotated[Positional[Path], tyro.conf.arg(metavar="DST")]
    """The new directory."""
    to: Target
    """Whose checkpoint to write; pi0_aligned and pi05_aligned add an alignment expert and TTT layers."""
    asset_id: str | None = None
    """Whose statistics to read from an openpi checkpoint with several robots', or the name to write there ("robot")."""

    alignment_depth: int | None = None
    """Layers of the alignment expert; None: as many as the VLM's."""
    alpha: float = 0.1
    """Opening of the TTT layers; 0: actions stay the plain policy's bit for bit, but W gets no gradient."""
    ttt_heads: int = 16
    ttt_head_dim: int = 64
    ttt_positions: tuple[int, ...] | Literal["all", "none"] | None = None
    """Depths with a TTT layer; None: those that the alignment expert reads."""
    copy_expert: bool = True
    """Start the alignment expert as a copy of the action expert; otherwise at random."""
    state_token: bool = True
    """pi05_aligned: the state as a token of the suffix, which starts at random; otherwise in the prompt (pi0.5)."""
    seed: int = 0
    """Of what starts at random."""

    head_dim: int | None = None
    """This and the next five: what neither tensors nor config.json of an openpi or LeRobot checkpoint tell; None:
    openpi's own."""
    vision_heads: int | None = None
    action_horizon: int | None = None
    max_token_len: int | None = None
    cameras: tuple[str, ...] | None = None
    discrete_state_input: bool | None = None

    def settings(self) -> dict[str, Any]:
        """The fields of `CheckpointSettings` that were given."""
        given = {field.name: getattr(self, field.name) for field in fields(CheckpointSettings)}
        return {name: value for name, value in given.items() if value is not None}


def run(config: ConvertConfig) -> None:
    """`convert`, and says what was written."""
    print(convert(config))


def convert(config: ConvertConfig) -> str:
    """Write the new checkpoint; returns a line that says what it is.

    Raises:
        FileExistsError: the destination exists.
        FileNotFoundError: the source, or one of its files, is missing.
        ValueError: a file is damaged, or the source has what the target cannot hold.
    """
    with open_source(config) as source, new_directory(config.destination) as directory:
        if config.to == "openpi":
            tensors = foreign_tensors(source, "")
            write_openpi(directory, source.config, source.stats, source.dtype, config.asset_id or "robot")
            write_tensors(directory / WEIGHTS, tensors)
        elif config.to == "lerobot":
            if source.config.time == "adarms" and not source.config.discrete_state_input:
                raise ValueError("LeRobot's pi0.5 always tells the state in its prompt; this one was trained without")
            tensors = foreign_tensors(source, "model.")
            lerobot_policy.write_surroundings(directory, source.config, source.stats, source.dtype)
            write_tensors(directory / WEIGHTS, tensors)
        else:
            tensors = write_own(directory, source, target_config(source.config, config), config)
        size = sum(tensor.num_bytes for tensor in tensors.values()) / 1e9
        stats = "no statistics" if source.stats is None else f"statistics ({source.stats.mode})"
    told = f"{config.destination}: {config.to} from {source.kind}, {len(tensors)} tensors, {size:.3f} GB, {stats}"
    if config.to in ("openpi", "lerobot") and source.info.acting != Acting():
        told += f"; it does not say how it acts ({source.info.acting}), for which {config.to} has no place"
    return told


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """An open checkpoint; weights are read when they are written."""

    kind: Kind
    config: VLAConfig
    tensors: Mapping[str, StoredTensor]
    """By Selfalign's names."""
    info: CheckpointInfo
    unused_head: StoredTensor | None = None

    @property
    def stats(self) -> NormStats | None:
        return self.info.stats

    @property
    def dtype(self) -> torch.dtype:
        """Of most numbers."""
        return self.tensors["embed_tokens.weight"].dtype


@contextmanager
def open_source(config: ConvertConfig) -> Iterator[Source]:
    """The checkpoint to convert, checked to be whole and to be no target already; errors as in `convert`."""
    directory, kind = config.source, kind_of(config.source)
    if kind == config.to:
        raise ValueError(f"{directory} is {kind}'s already")
    if kind != "selfalign":
        check_settings(directory)
        with open_plain(directory, **config.settings()) as plain:
            asset_id = config.asset_id if kind == "openpi" else None
            stats = read_stats(directory, plain.config, asset_id)
            info = CheckpointInfo("", "paligemma", AlignSettings.unrehearsed(), stats)
            yield Source(kind, plain.config, plain.tensors, info, plain.unused_head)
        return
    if config.settings():
        raise ValueError(f"{directory} is Selfalign's own checkpoint and takes no {', '.join(config.settings())}")
    own, info = load_config(directory), CheckpointInfo.read(directory)
    with open_tensors(directory / WEIGHTS) as tensors:
        check_fit(shapes_of(unique_tensors(_meta(own))), shapes_of(tensors), str(directory / WEIGHTS))
        if fingerprint_of(own, tensors) != info.fingerprint:
            raise ValueError(f"the files in {directory} do not belong together: copy the whole checkpoint again")
        yield Source(kind, own, tensors, info)


def _meta(config: VLAConfig) -> VLA:
    """The model without memory."""
    with torch.device("meta"):
        return VLA(config)


def fingerprint_of(config: VLAConfig, tensors: Mapping[str, StoredTensor]) -> str:
    """The fingerprint that the model has when it is loaded, which is in float32."""
    state = _meta(config).state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return fingerprint(config, {name: tensors[first[id(t)]].to(torch.float32) for name, t in state.items()})


# ---- writing -------------------------------------------------------------------------------------------------------


def foreign_tensors(source: Source, prefix: str) -> dict[str, StoredTensor]:
    """Tensors by the names of openpi's file, each after `prefix` (LeRobot: `model.`).

    The action expert's `lm_head`, which nothing reads but their strict loaders want, is zero where the source has none.

    Raises:
        ValueError: the policy is not a plain pi0 or pi0.5.
    """
    config = source.config
    model = _meta(config)
    names = written_names(model)
    extra = [name for name, _ in model.named_parameters() if name not in names]
    if extra:
        raise ValueError(f"openpi and LeRobot have no place for {len(extra)} tensors of this policy ({extra[0]}, ...)")
    if source.info.tokenizer != "paligemma" or config.state_token != (config.time == "concat"):
        raise ValueError("this policy is neither pi0 nor pi0.5: its words or its state come in otherwise")
    head = source.unused_head or StoredTensor.zeros((config.vocab_size, config.action.width), source.dtype)
    return {prefix + theirs: source.tensors[ours] for ours, theirs in names.items()} | {prefix + UNUSED: head}


def target_config(plain: VLAConfig, config: ConvertConfig) -> VLAConfig:
    """The config of Selfalign's model, in the sizes of the source."""
    if config.to not in ALIGNED:
        return plain
    if plain.time != ALIGNED[config.to] or plain.alignment is not None:
        what = "has an alignment expert already" if plain.alignment is not None else f"cannot become {config.to}"
        raise ValueError(f"{config.source} {what}: {config.to} is made of a plain {config.to.removesuffix('_aligned')}")
    if config.to == "pi05_aligned":
        plain = replace(plain, state_token=config.state_token)
    depth = plain.vlm.depth if config.alignment_depth is None else config.alignment_depth
    ttt = TTTConfig(config.ttt_heads, config.ttt_head_dim, alpha_init=config.alpha)
    return presets.aligned(plain, depth, config.ttt_positions, ttt)


def write_own(directory: Path, source: Source, model: VLAConfig, config: ConvertConfig) -> dict[str, StoredTensor]:
    """Write Selfalign's checkpoint of the policy `model`, with what the source lacks; returns its tensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        copy = config.copy_expert and model.alignment is not None
        added = additions(model, shapes_of(source.tensors), copy_expert=copy)
    tensors = dict(source.tensors)
    tensors |= {name: source.tensors[original] for name, original in added.copies.items()}
    tensors |= {name: StoredTensor.of(tensor) for name, tensor in added.fresh.items()}
    write_json(directory / "config.json", config_to_dict(model))
    write_tensors(directory / WEIGHTS, tensors)
    replace(source.info, fingerprint=fingerprint_of(model, tensors), calibration=None).write(directory)
    return tensors
