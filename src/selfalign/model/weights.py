"""A model as files: `config.json` and `model.safetensors`. Loading is strict and loud."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfalign.model.config import VLAConfig
from selfalign.model.files import umask, write_atomically
from selfalign.model.policy import VLA
from selfalign.model.precision import Precision, set_precision
from selfalign.model.streams import StreamConfig
from selfalign.model.tensorfile import StoredTensor, open_tensors, write_tensors
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig, SigLIPConfig

VISION_KINDS = {"siglip": SigLIPConfig, "keypoints": KeypointTowerConfig}


def config_to_dict(config: VLAConfig) -> dict[str, Any]:
    """The config as JSON values; the vision tower's kind is written beside its sizes."""
    kind = next(name for name, cls in VISION_KINDS.items() if isinstance(config.vision, cls))
    data = dataclasses.asdict(config)
    data["vision"] = {"kind": kind, **data["vision"]}
    return data


def config_from_dict(data: Mapping[str, Any]) -> VLAConfig:
    """The inverse of `config_to_dict`."""
    data = _tuples(dict(data))
    vision = dict(data["vision"])
    streams = {
        name: None if data[name] is None else StreamConfig(**data[name]) for name in ("vlm", "action", "alignment")
    }
    ttt, tower = TTTConfig(**data["ttt"]), VISION_KINDS[vision.pop("kind")](**vision)
    return VLAConfig(**{**data, **streams, "ttt": ttt, "vision": tower})


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once: a TTT layer stands in both experts but is one object."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def check_fit(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], source: str, model: str = "this model"
) -> None:
    """Compare two lists of names and shapes; `source` names the second.

    Raises:
        ValueError: lists up to ten missing, unexpected and wrongly shaped names, and counts the rest.
    """
    problems = [f"missing: {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected: {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"shape of {name}: file {tuple(found[name])}, model {tuple(expected[name])}"
        for name in expected.keys() & found.keys()
        if tuple(expected[name]) != tuple(found[name])
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{source} does not fit {model}:\n  " + "\n  ".join(sorted(problems)[:10]) + more)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into the model; every name and shape must fit (`check_fit`)."""
    own = unique_tensors(model)
    check_fit(shapes_of(own), shapes_of(tensors), source)
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def shapes_of(tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def empty_model(config: VLAConfig, precision: Precision = "float32") -> VLA:
    """The model with memory for its parameters but no values in it: a loader must fill every one of them."""
    with torch.device("meta"):
        model = set_precision(VLA(config), precision)
    model.to_empty(device="cpu")
    model.feature_mean.zero_()
    model.feature_std.fill_(1.0)
    return model


def save_model(model: VLA, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors`, each atomically."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config_to_dict(model.config))
    tensors = {name: StoredTensor.of(tensor) for name, tensor in unique_tensors(model).items()}
    write_atomically(directory / "model.safetensors", lambda path: write_tensors(path, tensors))


def load_config(directory: str | Path) -> VLAConfig:
    """The config of the model in `directory`; raises as `load_model` does."""
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} is not a checkpoint: it has no {name}")
    try:
        return config_from_dict(read_json(directory / "config.json"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / 'config.json'} is not a model config: {error!r}") from error


def load_model(directory: str | Path) -> VLA:
    """Build the model that `directory` describes and load its weights, strictly.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit.
    """
    directory = Path(directory)
    model = empty_model(load_config(directory))
    with open_tensors(directory / "model.safetensors") as file:
        own = unique_tensors(model)
        check_fit(shapes_of(own), shapes_of(file), str(directory / "model.safetensors"))
        for name, tensor in own.items():
            tensor.copy_(file[name].tensor())
    return model.eval()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object")
    return data


def write_json(path: Path, data: Any) -> None:
    """Write JSON that a person can read, atomically."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda target: target.write_text(text))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name when the block ends well, and goes when it does not.

    Raises:
        FileExistsError: there is something at `path`.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; give a new directory, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~umask())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
