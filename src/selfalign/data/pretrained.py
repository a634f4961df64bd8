"""Checkpoint directories of other projects: what kind one is, and the statistics that it normalises with.

openpi     model.safetensors, assets/<asset id>/norm_stats.json, perhaps config.json
LeRobot    model.safetensors, config.json with a `type`, policy_preprocessor.json, policy_postprocessor.json
"""

from pathlib import Path
from typing import Any, Literal

import torch

from selfalign.data import lerobot_policy
from selfalign.data.normalize import NormStats
from selfalign.model.config import VLAConfig
from selfalign.model.openpi import CheckpointSettings, load_openpi
from selfalign.model.policy import VLA
from selfalign.model.weights import read_json, write_json

Kind = Literal["selfalign", "openpi", "lerobot"]
STATS_FILE = "norm_stats.json"
INSTEAD = {
    "model.safetensors.index.json": "its weights are in several files; save them as one model.safetensors",
    "params": "it is a JAX checkpoint of openpi; openpi's examples/convert_jax_model_to_pytorch.py makes a PyTorch one",
    "pretrained_model": "it is a training checkpoint of LeRobot; the policy is in its folder pretrained_model",
    "adapter_model.safetensors": "it is a LoRA adapter; merge it into its base model first",
}
"""What else may lie in a directory without `model.safetensors`, and what to do."""


def kind_of(directory: Path) -> Kind:
    """Whose checkpoint it is, by its files.

    Raises:
        FileNotFoundError: no such directory, or it holds no checkpoint; the message says what is missing.
        ValueError: `config.json` is damaged.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoint directory at {directory}")
    config = directory / "config.json"
    data = read_json(config) if config.is_file() else {}
    if (directory / "settings.json").is_file() or "vlm" in data:
        return "selfalign"
    if not (directory / "model.safetensors").is_file():
        why = next((f": {text}" for name, text in INSTEAD.items() if (directory / name).exists()), "")
        raise FileNotFoundError(f"{directory} is not a checkpoint: it has no model.safetensors{why}")
    is_lerobot = "type" in data or (directory / f"{lerobot_policy.PREPROCESSOR}.json").is_file()
    return "lerobot" if is_lerobot else "openpi"


def load_pretrained(directory: Path, asset_id: str | None = None, **settings: Any) -> tuple[VLA, NormStats | None]:
    """Model and statistics of a checkpoint of openpi or LeRobot.

    Args:
        directory: of that kind.
        asset_id: whose statistics, where an openpi checkpoint has several robots'.
        settings: as in `load_openpi`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, does not fit, or asks for what Selfalign does not have.
    """
    check_settings(directory)
    model = load_openpi(directory, **settings)
    return model, read_stats(directory, model.config, asset_id)


def check_settings(directory: Path) -> None:
    """Refuses a LeRobot policy that would act otherwise here; see `lerobot_policy.check_policy`."""
    if kind_of(directory) == "lerobot":
        path = directory / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} is a LeRobot policy without config.json: copy the whole directory")
        lerobot_policy.check_policy(directory, read_json(path))


def read_stats(directory: Path, config: VLAConfig, asset_id: str | None = None) -> NormStats | None:
    """The statistics of a checkpoint of openpi or LeRobot; None where it has none. Arguments as in `load_pretrained`.

    Raises:
        FileNotFoundError: a file is missing, or there is no such asset.
        ValueError: a file is damaged, has more dimensions than the model, or is one of several and none was chosen.
    """
    if kind_of(directory) == "lerobot":
        if asset_id is not None:
            raise ValueError(f"{directory} is a LeRobot policy: it has one robot's statistics and no asset_id")
        _check_type(directory, config)
        stats = lerobot_policy.read_stats(directory)
    else:
        stats = _read_openpi(directory, config, asset_id)
    if stats is not None and (stats.state_dim > config.state_dim or stats.action_dim > config.action_dim):
        raise ValueError(
            f"{directory} has statistics of {stats.state_dim} state and {stats.action_dim} action dimensions, the "
            f"model has {config.state_dim} and {config.action_dim}"
        )
    return stats


def _check_type(directory: Path, config: VLAConfig) -> None:
    told = read_json(directory / "config.json").get("type")
    if lerobot_policy.TYPES.get(str(told)) != config.time:
        raise ValueError(f"{directory}: config.json says {told!r}, but the tensors are of the other of pi0 and pi0.5")


def assets_of(directory: Path) -> dict[str, Path]:
    """The statistics of an openpi checkpoint, by the robot's name there."""
    assets = directory / "assets"
    return {str(p.parent.relative_to(assets)): p for p in sorted(assets.rglob(STATS_FILE))} if assets.is_dir() else {}


def _read_openpi(directory: Path, config: VLAConfig, asset_id: str | None) -> NormStats | None:
    assets, found = directory / "assets", assets_of(directory)
    names = ", ".join(found) or "none"
    if asset_id is None and len(found) > 1:
        raise ValueError(
            f"{assets} has statistics of several robots ({names}): choose one with asset_id= of sa.load or --asset-id "
            "of `selfalign convert`, or give a robot (--robot) whose `asset_id` is one of them"
        )
    if asset_id is not None and asset_id not in found:
        raise FileNotFoundError(f"{assets} has no {asset_id}/{STATS_FILE}; it has {names}")
    if not found:
        return None
    path = directory / "config.json"
    data = read_json(path) if path.is_file() else {}
    by_quantiles = data.get("use_quantile_norm", config.time == "adarms")
    chosen = asset_id if asset_id is not None else next(iter(found))
    return NormStats.read_openpi(found[chosen], "quantile" if by_quantiles else "zscore")


def write_openpi(
    directory: Path, config: VLAConfig, stats: NormStats | None, dtype: torch.dtype, asset_id: str
) -> None:
    """Writes everything but the weights as openpi has it. openpi reads the statistics, `config.json` is for others."""
    data: dict[str, Any] = {
        "action_dim": config.action_dim,
        "action_horizon": config.action_horizon,
        **lerobot_policy.variants(config),
        "precision": str(dtype).removeprefix("torch."),
        "pi05": config.time == "adarms",
        "max_token_len": config.max_token_len,
        **lerobot_policy.unusual_settings(config),
    }
    if config.cameras != CheckpointSettings().cameras:
        data["cameras"] = config.cameras
    if not config.discrete_state_input:
        data["discrete_state_input"] = False
    if stats is not None:
        data["use_quantile_norm"] = stats.mode == "quantile"
        stats.write_openpi(directory / "assets" / asset_id)
    write_json(directory / "config.json", data)
