"""Damaged training checkpoints: an error that names them, or the very same state; never a silent difference."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.rehearsing import state_for
from damage import check_damage, exchange, flip_bits, overwrite, remove, truncate
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.step import OptimConfig, TrainState, train_step
from selfalign.train.world import ALONE, World

OPTIM = OptimConfig(warmup_steps=2, ema_decay=0.9)


@dataclass(frozen=True)
class Sharded:
    """Says that one process saves as FSDP does."""

    world: World = ALONE
    sharded: bool = True


def change_type(root: Path, rng: np.random.Generator) -> str:
    """A tensor of another type, in a file that is whole."""
    path = next(root.glob("step-*.pt"))
    payload = torch.load(path, weights_only=True)
    kind = ("model", "ema")[rng.integers(2)]
    name = sorted(payload[kind])[rng.integers(len(payload[kind]))]
    payload[kind][name] = payload[kind][name].to((torch.float64, torch.float16, torch.int32)[rng.integers(3)])
    torch.save(payload, path)
    return f"{kind} {name} as {payload[kind][name].dtype}"


def drop_part(root: Path, rng: np.random.Generator) -> str:
    path = next(root.glob("step-*.pt"))
    payload = torch.load(path, weights_only=True)
    names = [name for name in payload if name != "about"]
    name = names[rng.integers(len(names))]
    del payload[name]
    torch.save(payload, path)
    return f"without {name}"


@pytest.fixture
def states(small_sources) -> tuple[TrainState, TrainState]:
    """One that is saved, and one that it is restored into."""
    return state_for(small_sources, optim=OPTIM), state_for(small_sources, optim=OPTIM)


def reading(state: TrainState):
    """Everything that a training would go on from, of the newest checkpoint of a folder."""

    def read(root: Path) -> dict[str, Any]:
        for tensor in [*unique_tensors(state.model).values(), *state.ema.values.values()]:
            tensor.data.zero_()
        checkpoint.restore(state, checkpoint.available(root)[-1])
        moments = state.optimizer.state_dict()["state"]
        return {
            "step": state.step,
            "model": {name: t.detach().numpy().copy() for name, t in unique_tensors(state.model).items()},
            "ema": {name: t.numpy().copy() for name, t in state.ema.values.items()},
            "moments": {(i, key): t.numpy().copy() for i, told in moments.items() for key, t in told.items()},
            "slots": [c.numpy().tolist() for c in state.objective.coordinates],
            "ages": state.objective.lives.age.tolist(),
        }

    return read


def saved(state: TrainState, folder: Path, steps: int = 1) -> Path:
    for _ in range(steps):
        train_step(state)
        checkpoint.save(state, folder)
    return folder


def test_200_damaged_files_are_errors_or_harmless(states, tmp_path):
    clean = saved(states[0], tmp_path / "clean")
    check_damage(clean, tmp_path, range(200), (truncate, flip_bits, overwrite), reading(states[1]), errors=0.9)


def test_whole_files_with_other_contents_are_errors(states, tmp_path):
    clean = saved(states[0], tmp_path / "clean")
    check_damage(clean, tmp_path, range(16), (change_type, drop_part), reading(states[1]), errors=0.9)


def test_damaged_shards_are_errors_or_harmless(states, tmp_path):
    train_step(states[0])
    for state in states:
        state.engine = Sharded()
    clean = checkpoint.save(states[0], tmp_path / "clean").parent
    kinds = (truncate, flip_bits, overwrite, remove, exchange)
    check_damage(clean, tmp_path, range(30), kinds, reading(states[1]), errors=0.9)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(states, tmp_path):
    folder = saved(states[0], tmp_path, steps=2)
    shutil.copy(folder / "step-0000001.pt", folder / "step-0000002.pt")
    with pytest.raises(ValueError, match=r"step-0000002\.pt is of step 1: give it the name that it had"):
        checkpoint.restore(states[1], folder / "step-0000002.pt")
