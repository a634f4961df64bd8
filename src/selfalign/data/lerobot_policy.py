"""What lies around the weights in a pi0 or pi0.5 directory of LeRobot: its config and its two processors.

    config.json                    sizes, cameras, and how states and actions are normalised
    policy_preprocessor.json       steps; the normaliser's names a safetensors file of statistics
    policy_postprocessor.json      the same for actions on their way out

Statistics are tensors `observation.state.mean`, `action.q01` and so on, in robot units.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfalign.data.episodes import IMAGE_PREFIX
from selfalign.data.normalize import FieldStats, Mode, NormStats, check_field
from selfalign.model.config import VLAConfig
from selfalign.model.openpi import CheckpointSettings
from selfalign.model.tensorfile import StoredTensor, open_tensors, write_tensors
from selfalign.model.weights import read_json, write_json

STATE, ACTION = "observation.state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
TYPES = {"pi0": "concat", "pi05": "adarms"}
"""LeRobot's policy type -> how flow time comes in."""
MODES: dict[str, Mode] = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}
STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
EPS = 1e-8
"""What LeRobot adds to a standard deviation unless the normaliser says otherwise."""
FIXED = {"min_period": 4e-3, "max_period": 4.0, "n_obs_steps": 1}
ABSENT = ("use_relative_actions", "use_visual_memory", "use_proprioceptive_memory", "use_peft")
VARIANTS = {(2048, 16_384, 18): "gemma_2b", (1024, 4096, 18): "gemma_300m"}
"""LeRobot's and openpi's names of a stream's (width, mlp_dim, depth)."""


# ---- reading -------------------------------------------------------------------------------------------------------


def check_policy(directory: Path, data: Mapping[str, Any]) -> None:
    """Refuses what would act otherwise here than in LeRobot.

    Args:
        directory: of the policy.
        data: its `config.json`.

    Raises:
        FileNotFoundError: a processor's file is missing.
        ValueError: another kind of policy, or a setting that Selfalign's model does not have.
    """
    if data.get("type") not in TYPES:
        raise ValueError(
            f"{directory} is LeRobot's policy {data.get('type')!r}; only {' and '.join(TYPES)} can be read"
        )
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if not (directory / f"{name}.json").is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}.json, which says how LeRobot normalises: copy the whole directory, or "
                "migrate an old policy with LeRobot first"
            )
    wrong = [f"{name}={data[name]}" for name, value in FIXED.items() if data.get(name, value) != value]
    wrong += [f"{name}={data[name]}" for name in ABSENT if data.get(name)]
    if wrong:
        raise ValueError(f"{directory / 'config.json'} has settings that Selfalign's model lacks: {', '.join(wrong)}")


def read_stats(directory: Path) -> NormStats | None:
    """The statistics that a LeRobot policy normalises with; None where it carries none (a base model).

    Raises:
        FileNotFoundError: a file that a processor names is missing.
        ValueError: a damaged file, a normalisation other than by mean and deviation or by quantiles, or two processors
            that disagree.
    """
    before, tensors = _normalizer(directory, PREPROCESSOR, NORMALIZER)
    _, after = _normalizer(directory, POSTPROCESSOR, UNNORMALIZER)
    if not tensors and not after:
        return None
    path = directory / f"{PREPROCESSOR}.json"
    mode = _mode(before.get("norm_map") or {}, path)
    state, action, outgoing = (
        _field_stats(held, key, mode, directory) for held, key in ((tensors, STATE), (tensors, ACTION), (after, ACTION))
    )
    if action.to_dict() != outgoing.to_dict():
        raise ValueError(f"{directory}: its two processors have different statistics of actions")
    return NormStats(state, action, mode, float(before.get("eps", EPS)))


def _normalizer(directory: Path, name: str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and statistics of a processor's one normalising step."""
    path = directory / f"{name}.json"
    told = read_json(path).get("steps")
    if not isinstance(told, list) or not all(isinstance(step, dict) for step in told):
        raise ValueError(f"{path} is damaged: its steps are no list of objects")
    steps = [step for step in told if step.get("registry_name") == kind]
    if len(steps) != 1:
        raise ValueError(f"{path} has {len(steps)} steps {kind!r}, one was expected")
    config, file = steps[0].get("config") or {}, steps[0].get("state_file")
    if file is None:
        return config, {}
    if not (directory / file).is_file():
        raise FileNotFoundError(f"{directory} has no {file}, the statistics that {path.name} names")
    with open_tensors(directory / file) as tensors:
        return config, {key: tensor.tensor() for key, tensor in tensors.items()}


def _mode(norm_map: Mapping[str, str], path: Path) -> Mode:
    told = {norm_map.get(field, "IDENTITY") for field in ("STATE", "ACTION")}
    if len(told) != 1 or not told <= MODES.keys():
        raise ValueError(
            f"{path} normalises states and actions by {' and '.join(sorted(told))}; both must be by one of "
            f"{', '.join(MODES)}"
        )
    return MODES[told.pop()]


def _field_stats(tensors: Mapping[str, Tensor], key: str, mode: Mode, directory: Path) -> FieldStats:
    found = {name: tensors.get(f"{key}.{name}") for name in (*STATISTICS, "count")}
    values = {name: t.double().numpy().reshape(-1) for name, t in found.items() if t is not None}
    missing = [f"{key}.{name}" for name in ("mean", "std") if name not in values]
    if missing:
        raise ValueError(f"{directory}: the statistics have no {', '.join(missing)}")
    count = int(values.pop("count", np.zeros(1))[0])
    stats = FieldStats.from_dict({**values, "count": count})
    check_field(f"{directory}: {key}", stats, mode)
    return stats


# ---- writing -------------------------------------------------------------------------------------------------------


def write_surroundings(directory: Path, config: VLAConfig, stats: NormStats | None, dtype: torch.dtype) -> None:
    """Writes everything but the weights, as LeRobot does; training settings are LeRobot's defaults.

    Args:
        stats: None writes processors without statistics, like those of a base model.
        dtype: of the weights.
    """
    kind = next(kind for kind, time in TYPES.items() if time == config.time)
    mode = stats.mode if stats is not None else ("zscore" if kind == "pi0" else "quantile")
    word = next(word for word, m in MODES.items() if m == mode)
    norm_map = {"VISUAL": "IDENTITY", "STATE": word, "ACTION": word}
    inputs, outputs = _features(config, stats)
    write_json(directory / "config.json", _policy_config(kind, config, inputs, outputs, norm_map, dtype))

    eps = stats.eps if stats is not None else EPS
    normalizer = _step(NORMALIZER, eps=eps, features=inputs | outputs, norm_map=norm_map)
    unnormalizer = _step(UNNORMALIZER, eps=eps, features=outputs, norm_map=norm_map)
    _write_processor(directory, PREPROCESSOR, _input_steps(kind, config, normalizer), stats)
    output_steps = [unnormalizer, _step("device_processor", device="cpu", float_dtype=None)]
    _write_processor(directory, POSTPROCESSOR, output_steps, stats)


def _features(config: VLAConfig, stats: NormStats | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of the policy, in the robot's own dimensions where they are known."""
    side = config.image_size
    state_dim, action_dim = (
        (config.state_dim, config.action_dim) if stats is None else (stats.state_dim, stats.action_dim)
    )
    inputs = {f"{IMAGE_PREFIX}{c}": {"type": "VISUAL", "shape": [3, side, side]} for c in config.cameras}
    return (
        {**inputs, STATE: {"type": "STATE", "shape": [state_dim]}},
        {ACTION: {"type": "ACTION", "shape": [action_dim]}},
    )


def _policy_config(
    kind: str,
    config: VLAConfig,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    norm_map: Mapping[str, str],
    dtype: torch.dtype,
) -> dict[str, Any]:
    return {
        "type": kind,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "device": None,
        "normalization_mapping": norm_map,
        **variants(config),
        "dtype": "bfloat16" if dtype == torch.bfloat16 else "float32",
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "image_resolution": [config.image_size, config.image_size],
        "tokenizer_max_length": config.max_token_len,
        **unusual_settings(config),
    }


def variants(config: VLAConfig) -> dict[str, str]:
    """The names of the two streams' sizes; "custom" where openpi and LeRobot have none, and cannot build the model."""
    streams = {"paligemma_variant": config.vlm, "action_expert_variant": config.action}
    return {name: VARIANTS.get((s.width, s.mlp_dim, s.depth), "custom") for name, s in streams.items()}


def unusual_settings(config: VLAConfig) -> dict[str, int]:
    """What neither tensors nor a variant's name tell of a model of other sizes than the published ones."""
    usual = CheckpointSettings()
    found = {"head_dim": config.vlm.head_dim, "vision_heads": getattr(config.vision, "num_heads", usual.vision_heads)}
    return {name: value for name, value in found.items() if value != getattr(usual, name)}


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _input_steps(kind: str, config: VLAConfig, normalizer: dict[str, Any]) -> list[dict[str, Any]]:
    """In LeRobot's order: pi0.5 writes the normalised state into the prompt, so it normalises before it tokenises."""
    start = [_step("rename_observations_processor", rename_map={}), _step("to_batch_processor")]
    tokenizer = _step(
        "tokenizer_processor",
        max_length=config.max_token_len,
        task_key="task",
        padding_side="right",
        padding="max_length",
        truncation=True,
        tokenizer_name="google/paligemma-3b-pt-224",
    )
    device = _step("device_processor", device="cpu", float_dtype=None)
    if kind == "pi0":
        return [*start, _step("pi0_new_line_processor"), tokenizer, device, normalizer]
    return [*start, normalizer, _step("pi05_prepare_state_tokenizer_processor_step"), tokenizer, device]


def _write_processor(directory: Path, name: str, steps: list[dict[str, Any]], stats: NormStats | None) -> None:
    for i, step in enumerate(steps):
        if stats is not None and step["registry_name"] in (NORMALIZER, UNNORMALIZER):
            step["state_file"] = f"{name}_step_{i}_{step['registry_name']}.safetensors"
            write_tensors(directory / step["state_file"], _stored(stats))
    write_json(directory / f"{name}.json", {"name": name, "steps": steps})


def _stored(stats: NormStats) -> dict[str, StoredTensor]:
    """float32 as LeRobot writes it, but float64 where rounding would lose something; LeRobot rounds as it reads."""
    result = {}
    for key, held in ((STATE, stats.state), (ACTION, stats.action)):
        known = {name: getattr(held, name) for name in STATISTICS if not np.isnan(getattr(held, name)).all()}
        known |= {"count": np.array([held.count], dtype=np.float64)} if held.count else {}
        for name, values in known.items():
            exact = np.array_equal(values.astype(np.float32), values, equal_nan=True)
            result[f"{key}.{name}"] = StoredTensor.of(
                torch.from_numpy(values.astype(np.float32 if exact else np.float64))
            )
    return result
