"""Training checkpoints: complete, atomic, pruned. What a run needs to go on as if it had never stopped.

A checkpoint is a file, `step-NNNNNNN.pt`, that any number of processes goes on from; of a training with FSDP it is a
folder of that name in the format of torch.distributed.checkpoint, with what is not sharded in `rest.pt`. What was
damaged since is refused: by the sums that torch writes into its files and does not look at, for a folder by our own.
"""

import dataclasses
import random
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfalign.data.checksums import Checksums
from selfalign.model.files import write_atomically
from selfalign.model.weights import unique_tensors
from selfalign.train.step import NonFiniteLoss, TrainState

_PATTERN = re.compile(r"step-(\d{7})(\.pt)?")
_PARTS = {"step", "total_steps", "objective", "torch_rng"}
"""What every checkpoint has, beside weights and moments."""


def save(state: TrainState, directory: str | Path, *, keep: int = 2, keep_every: int | None = None) -> Path:
    """Write a checkpoint atomically, then remove old ones. Every process of a training calls it.

    Args:
        keep: how many of the newest stay.
        keep_every: those of steps that are a multiple of this stay too.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    world, path = state.engine.world, directory / f"step-{state.step:07d}{'' if state.engine.sharded else '.pt'}"
    rest = _rest(state)
    if state.engine.sharded:
        _save_shards(state, rest, path)
    elif world.main:
        payload = {**rest, **_weights(state), "optimizer": state.optimizer.state_dict()}
        write_atomically(path, lambda temporary: torch.save(payload, temporary))
    if world.main:
        for old in available(directory)[:-keep]:
            if keep_every is None or _step(old) % keep_every:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    world.wait()
    return path


def available(directory: str | Path) -> list[Path]:
    """Checkpoints in the directory, oldest first."""
    return sorted((p for p in Path(directory).glob("step-*") if _PATTERN.fullmatch(p.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removesuffix(".pt").removeprefix("step-"))


def _rest(state: TrainState) -> dict[str, Any]:
    """Everything but weights and moments. The slots of all processes are gathered."""
    return {
        "step": state.step,
        "total_steps": state.total_steps,
        "objective": state.objective.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "about": dict(state.about),
    }


def _weights(state: TrainState) -> dict[str, Any]:
    average = {} if state.ema is None else {"ema": state.ema.values}
    return {"model": unique_tensors(state.model), **average}


def restore(state: TrainState, path: str | Path) -> None:
    """Bring `state` to where the checkpoint was written; the steps that follow are bit for bit the same.

    Raises:
        ValueError: damaged, of another model, another length of training or other settings (all that `about` tells, but
            for its `machine`), or of another kind of parallelism.
    """
    path = Path(path)
    if path.is_dir() != state.engine.sharded:
        kind, other = ("FSDP", "without it") if path.is_dir() else ("one process or DDP", "with FSDP")
        raise ValueError(f"{path} is of a training with {kind} and cannot go on {other}; use an empty output directory")
    if path.is_dir():
        _check_sums(state, path)
    payload = _read(path / "rest.pt" if path.is_dir() else path)
    if _PATTERN.fullmatch(path.name) and payload["step"] != _step(path):
        raise ValueError(f"{path} is of step {payload['step']}: give it the name that it had")
    if payload["total_steps"] != state.total_steps:
        raise ValueError(
            f"{path} is of a training of {payload['total_steps']} steps, not {state.total_steps}: the learning rate "
            "would jump; use the same number or an empty output directory"
        )
    others = _differences(payload.get("about", {}), {k: v for k, v in state.about.items() if k != "machine"})
    if others:
        told = "; ".join([*others[:5], *(["..."] if others[5:] else [])])
        raise ValueError(
            f"{path} is of a training with other settings ({told}): use the same or an empty output directory"
        )
    if path.is_dir():
        _restore_shards(state, path)
    else:
        _restore_weights(state, payload, path)
    state.objective.load_state_dict(payload["objective"])
    state.step = payload["step"]
    torch.set_rng_state(payload["torch_rng"])


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Where values that both have differ."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return [line for key in now if key in then for line in _differences(then[key], now[key], f"{name}.{key}")]
    return [] if then == now else [f"{name.removeprefix('.')} {then!r}, not {now!r}"]


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{broken} is not what was written")
        payload = torch.load(path, map_location="cpu", weights_only=True)
        if missing := sorted(_PARTS - payload.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}")
        return payload
    except Exception as error:  # zipfile and torch raise many kinds for a damaged archive
        raise ValueError(f"{path} is damaged or not a training checkpoint ({error}); {_REMEDY}") from error


_REMEDY = "delete it to go on from an older one"


def _restore_weights(state: TrainState, payload: Mapping[str, Any], path: Path) -> None:
    own = unique_tensors(state.model)
    if not {"model", "optimizer"} <= payload.keys():
        raise ValueError(f"{path} is damaged or not a training checkpoint (no weights or moments); {_REMEDY}")
    if _kinds(payload["model"]) != _kinds(own):
        raise ValueError(f"{path} is of another model: use its preset, or an empty output directory")
    if (state.ema is None) == ("ema" in payload):
        raise ValueError(
            f"{path} was made {'with' if state.ema is None else 'without'} a moving average of the weights"
        )
    if state.ema is not None and _kinds(payload["ema"]) != _kinds(state.ema.values):
        raise ValueError(f"{path} has a moving average of other weights; {_REMEDY}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(payload["model"][name])
    state.optimizer.load_state_dict(payload["optimizer"])
    if state.ema is not None:
        state.ema.load(payload["ema"])


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


# ---- FSDP ----------------------------------------------------------------------------------------------------------


def _save_shards(state: TrainState, rest: dict[str, Any], path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    world, partial = state.engine.world, path.with_name(f".{path.name}.partial")
    if world.main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    world.wait()
    save_shards(_shards(state), checkpoint_id=partial)
    if world.main:
        torch.save(rest, partial / "rest.pt")
        Checksums.of(partial).write()
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    world.wait()


def _check_sums(state: TrainState, path: Path) -> None:
    """One process weighs the files, and tells the others."""
    world, damage = state.engine.world, ""
    if world.main:
        try:
            Checksums.read(path).check_all()
        except (ValueError, OSError) as error:
            damage = str(error)
    if not world.all(not damage):
        raise ValueError(f"{path} is damaged{damage and f' ({damage})'}; {_REMEDY}")


def _restore_shards(state: TrainState, path: Path) -> None:
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    shards = _shards(state)
    try:
        found = FileSystemReader(path).read_metadata().state_dict_metadata
        wanted = [f"{kind}.{name}" for kind in ("model", "ema") for name in shards.get(kind, {})]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1} others")
        # Parameters without a gradient have no moments in the checkpoint.
        load(shards, checkpoint_id=path, planner=DefaultLoadPlanner(allow_partial_load=True))
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{path} is damaged, or of another model ({error})") from error
    set_optimizer_state_dict(state.model, state.optimizer, shards["optimizer"])


def _shards(state: TrainState) -> dict[str, Any]:
    """What torch.distributed.checkpoint writes, and reads into."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {**_weights(state), "optimizer": get_optimizer_state_dict(state.model, state.optimizer)}


# ---- other ---------------------------------------------------------------------------------------------------------


def with_batch(error: NonFiniteLoss, state: TrainState, directory: Path) -> NonFiniteLoss:
    """The error, told with the file that its batch was written to: `{step, part}` as plain tensors, for torch.load."""
    if error.part is None:
        return error
    path = directory / f"nonfinite-step-{state.step:07d}-rank-{state.engine.world.rank}.pt"
    write_atomically(path, lambda temporary: torch.save({"step": state.step, "part": _plain(error.part)}, temporary))
    return NonFiniteLoss(f"{error}; its batch is in {path}", error.part)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and slices as pairs: what torch.load takes without being told of our types."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [value.start, value.stop] if isinstance(value, slice) else value


def seed_everything(seed: int) -> None:
    """Seed the global generators of python and torch; numpy's are objects that their owners seed."""
    random.seed(seed)
    torch.manual_seed(seed)
