"""Training checkpoints: complete, atomic, pruned. What a run needs to go on as if it had never stopped."""

import random
import re
from pathlib import Path
from typing import Any

import torch

from selfalign.model.weights import unique_tensors, write_atomically
from selfalign.train.step import TrainState

_PATTERN = re.compile(r"step-(\d{7})\.pt")


def save(state: TrainState, directory: str | Path, *, keep: int = 2) -> Path:
    """Write `step-NNNNNNN.pt` atomically and remove all but the newest `keep`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{state.step:07d}.pt"
    payload = {
        "step": state.step,
        "total_steps": state.total_steps,
        "model": unique_tensors(state.model),
        "optimizer": state.optimizer.state_dict(),
        "objective": state.objective.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    write_atomically(path, lambda temporary: torch.save(payload, temporary))
    for old in available(directory)[:-keep]:
        old.unlink()
    return path


def available(directory: str | Path) -> list[Path]:
    """Checkpoints in the directory, oldest first."""
    return sorted(p for p in Path(directory).glob("step-*.pt") if _PATTERN.fullmatch(p.name))


def restore(state: TrainState, path: str | Path) -> None:
    """Bring `state` to where the checkpoint was written; the steps that follow are bit for bit the same.

    Raises:
        ValueError: damaged, or of another model or another length of training.
    """
    try:
        payload: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ValueError(
            f"{path} is damaged or not a training checkpoint ({error}); delete it to go on from an older one"
        ) from error
    own = unique_tensors(state.model)
    if payload["model"].keys() != own.keys() or any(payload["model"][k].shape != own[k].shape for k in own):
        raise ValueError(f"{path} is of another model: use its preset, or an empty output directory")
    if payload["total_steps"] != state.total_steps:
        raise ValueError(
            f"{path} is of a training of {payload['total_steps']} steps, not {state.total_steps}: the learning rate "
            "would jump; use the same number or an empty output directory"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(payload["model"][name])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.objective.load_state_dict(payload["objective"])
    state.step = payload["step"]
    torch.set_rng_state(payload["torch_rng"])


def seed_everything(seed: int) -> None:
    """Seed the global generators of python and torch; numpy's are objects that their owners seed."""
    random.seed(seed)
    torch.manual_seed(seed)
