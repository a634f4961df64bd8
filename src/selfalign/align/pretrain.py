"""Pretraining from recorded sources: a tower that points, its features computed once, a policy that rehearses."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from selfalign.align.rehearsal import RehearsalConfig, make_objective
from selfalign.data.cache import EpisodeCache
from selfalign.data.features import check_size, stored_features
from selfalign.data.snapshots import Snapshots
from selfalign.data.sources import SourceData
from selfalign.data.transforms import pixels_to_model
from selfalign.data.virtual import DrawPerturbation, FrameFeatures, ModelShape, VirtualSources
from selfalign.model.policy import VLA, VLAConfig
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.model.vision import KeypointTower
from selfalign.model.weights import load_model, load_tensors, unique_tensors
from selfalign.train import checkpoint
from selfalign.train.loop import LoopConfig, fit
from selfalign.train.pointing import PointingConfig, pointing_error, train_tower
from selfalign.train.step import OptimConfig, TrainState, make_state

POINTS = "privileged.points"
"""Column of image points that a simulator writes into source data: (u, v, visible) of each named keypoint."""


@dataclass(frozen=True)
class PretrainConfig:
    """A whole pretraining."""

    steps: int = 8000
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    pointing: PointingConfig = field(default_factory=PointingConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    keypoint_words: tuple[str, ...] = ()
    """Words of instructions for the tower's first keypoints, where the VLM is to learn to point at them."""
    start: Path | None = None
    """Checkpoint directory whose weights, the vision tower's too, the training starts from; None: from nothing."""
    snapshots: Path | None = None
    """Pictures of other rigs for the vision tower to learn on, from where it starts. On rigs that it was taught on, it
    sees better than on any new one, and a policy that learns there trusts it too much. None: the frames of the policy's
    own data, or, with `start`, none."""
    compile: bool = False
    """Compile the streams: minutes at the start, a quarter less time a step on a CPU."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """How often demonstrations of tasks that begin with a word are drawn, relative to the others."""


def pretrain(
    model_config: VLAConfig,
    data: SourceData | Iterable[str | Path],
    out: Path,
    config: PretrainConfig,
    draw: DrawPerturbation,
    *,
    on_save: Callable[[VLA, TrainState], None] | None = None,
) -> VLA:
    """Train a model on source data sets; interrupted, the same call goes on where it stopped.

    Args:
        data: data sets with play and demonstrations of many rigs, or their names (see `SourceData.open`).
        out: receives checkpoints, logs, the tower and the features.
        draw: the bodies that rehearsal may make of a rig.
        on_save: called with every checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.seed_everything(config.seed)
    model = VLA(model_config)
    if config.start is not None:
        load_tensors(model, unique_tensors(load_model(config.start)), str(config.start))
    source = data if isinstance(data, SourceData) else SourceData.open(data)
    cache = EpisodeCache.build(source, image_size=model_config.image_size, progress=True)
    if config.snapshots is not None or config.start is None:
        prepare_tower(model, _labelled(config.snapshots, cache, model), out, config.pointing)
    model.vision.eval().requires_grad_(False)
    features = frame_features(model, cache, out)
    tokenizer = ByteTokenizer(model_config.max_token_len, model_config.prompt_merges)
    shape = ModelShape(model_config.action_horizon, model_config.action_dim, model_config.state_dim)
    sources = VirtualSources(
        cache,
        features,
        tokenizer,
        shape,
        draw,
        task_weights=config.task_weights,
        keypoint_words=config.keypoint_words,
    )
    checkpoint.seed_everything(config.seed)  # the same start whether the tower was trained just now or before
    objective = make_objective(model, sources, dataclasses.replace(config.rehearsal, seed=config.seed))
    if config.compile:
        for run in ("prefix", "suffix"):
            setattr(model.mixture, run, torch.compile(getattr(model.mixture, run)))
    state = make_state(model.train(), objective, config.optim, config.steps)
    fit(state, out, config.loop, on_save=None if on_save is None else lambda s: on_save(model, s))
    return model.eval()


def _labelled(snapshots: Path | None, cache: EpisodeCache, model: VLA) -> Snapshots | None:
    """What the vision tower is to learn on; None: it does not learn to point."""
    if not isinstance(model.vision, KeypointTower):
        return None
    if snapshots is not None:
        return Snapshots.open(snapshots, model.config.image_size)
    if POINTS not in cache.column_names:
        return None
    (camera,) = model.config.cameras
    return Snapshots(cache.images(camera), cache.column(POINTS))


def prepare_tower(model: VLA, labelled: Snapshots | None, out: Path, config: PointingConfig) -> None:
    """Train the vision tower to point, if there is something to learn on; or load the one in `out`."""
    path = out / "tower.pt"
    if path.is_file():
        load_tensors(model.vision, torch.load(path, weights_only=True), str(path))
    elif labelled is not None and isinstance(model.vision, KeypointTower):
        train_tower(model.vision, labelled.images, labelled.points, config)
        rows = np.linspace(0, len(labelled.images) - 1, 2000).astype(int)
        error = pointing_error(model.vision, labelled.images[rows], labelled.points[rows])
        (out / "tower.json").write_text(json.dumps({**error, **dataclasses.asdict(config)}))
        torch.save(unique_tensors(model.vision), path)


def frame_features(model: VLA, cache: EpisodeCache, out: Path, batch: int = 256) -> FrameFeatures:
    """The tower's tokens of every frame, computed once and kept in `out`; sets the model's feature statistics.

    Where the data carry stored features, next observations are told by those.
    """
    tower = _digest(model.vision)  # another tower, another file: `start` may bring one into a used folder
    tokens = {
        camera: _tower_tokens(model, cache, camera, out / f"tokens-{camera}-{tower}.npy", batch)
        for camera in model.config.cameras
    }
    stored = stored_features({name: cache.column(name) for name in cache.column_names}, model.config.cameras)
    summary = _summaries(model, tokens) if stored is None else torch.from_numpy(stored).float()
    check_size(tuple(summary.shape[1:]), model)
    model.feature_mean.copy_(summary.mean(0))
    model.feature_std.copy_(summary.std(0).clamp_min(1e-3))
    return FrameFeatures(tokens, ((summary - model.feature_mean) / model.feature_std).numpy())


def _summaries(model: VLA, tokens: Mapping[str, np.ndarray], block: int = 8192) -> torch.Tensor:
    """The tower's own features [frames, n, F] of all cameras, not normalised."""
    summaries = []
    for start in range(0, len(next(iter(tokens.values()))), block):
        parts = [
            model.vision.summary(torch.from_numpy(values[start : start + block]).float()) for values in tokens.values()
        ]
        summaries.append(torch.cat(parts, dim=1))
    return torch.cat(summaries)


def _digest(module: torch.nn.Module) -> str:
    """Eight characters that tell one set of weights from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unique_tensors(module).items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def _tower_tokens(model: VLA, cache: EpisodeCache, camera: str, path: Path, batch: int) -> np.ndarray:
    images = cache.images(camera)
    if path.is_file():
        found = np.load(path, mmap_mode="r")
        if len(found) == len(images):
            return np.asarray(found)
    values = None
    for start in track(range(0, len(images), batch), description=f"features of {camera}"):
        block = model.vision(pixels_to_model(images[start : start + batch])).half().numpy()
        values = np.empty((len(images), *block.shape[1:]), dtype=np.float16) if values is None else values
        values[start : start + len(block)] = block
    assert values is not None
    partial = path.with_suffix(".partial.npy")
    np.save(partial, values)
    partial.replace(path)
    return values
