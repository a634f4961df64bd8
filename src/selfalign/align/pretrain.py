"""Pretraining from recorded sources: a tower that points, its features computed once, a policy that rehearses."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfalign.align.heldout import HeldOut, HeldOutConfig, hold_out
from selfalign.align.looks import RECOLOURED, picture_blocks, turned_looks
from selfalign.align.rehearsal import RehearsalConfig, make_objective
from selfalign.data.cache import EpisodeCache
from selfalign.data.features import check_size, stored_features
from selfalign.data.mixture import embodiment_odds
from selfalign.data.snapshots import Snapshots
from selfalign.data.sources import SourceData
from selfalign.data.transforms import Tokenizer, pixels_to_model
from selfalign.data.virtual import DrawPerturbation, FrameFeatures, ModelShape, PlayUse, VirtualSources
from selfalign.model.config import VLAConfig
from selfalign.model.device import existing_device
from selfalign.model.files import map_array, write_atomically
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.model.vision import KeypointTower, KeypointTowerConfig
from selfalign.model.weights import config_to_dict, load_model, load_tensors, unique_tensors
from selfalign.train import checkpoint
from selfalign.train.autocast import keep_float32
from selfalign.train.compiled import compile_streams
from selfalign.train.export import finished
from selfalign.train.loop import LoopConfig, run_training
from selfalign.train.lora import LoraSettings, add_lora
from selfalign.train.parallel import Strategy, make_engine
from selfalign.train.parts import Part, freeze
from selfalign.train.pointing import PointingConfig, pointing_error, train_tower
from selfalign.train.recompute import recompute_blocks
from selfalign.train.step import OptimConfig, TrainState, make_state
from selfalign.train.world import ALONE, World
from selfalign.workers import track

POINTS = "privileged.points"
"""Column of image points that a simulator writes into source data: (u, v, visible) of each named keypoint."""

KEEP_EVERY = 50
"""Blocks of frames after which what the tower has told of them is kept, should it be interrupted."""
MACHINE = ("loop", "start", "tower", "snapshots", "shared", "compile", "recompute", "strategy", "workers")
"""Fields of `PretrainConfig` that may be others when a training goes on."""


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
    tower: Path | None = None
    """Checkpoint directory whose vision tower the training starts with, whatever else it starts from; None: its own."""
    snapshots: Path | None = None
    """Pictures of other rigs for the vision tower to learn on, from where it starts. On rigs that it was taught on, it
    sees better than on any new one, and a policy that learns there trusts it too much. None: the frames of the policy's
    own data, or, with `start` or `tower`, none."""
    compile: bool = False
    """Compile the streams: minutes at the start, a quarter less time a step on a CPU."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """How often demonstrations of tasks that begin with a word are drawn, relative to the others."""
    data_weights: tuple[float, ...] = ()
    """How often bodies of each data set are drawn, relative to the others; empty: every rig is drawn as often."""
    turned_cameras: int = 0
    """Views of each recorded camera, turned and zoomed, that bodies may have beside the recorded one."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    freeze: tuple[Part, ...] = ()
    """Parts that stay as they start."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    recompute: bool = False
    """Keep only the inputs of blocks for the backward pass and run them again there: less memory, more time."""
    strategy: Strategy = "ddp"
    """How processes that torchrun has started share the training."""
    workers: int = 0
    """Processes, beside each of the training's, that decode recordings and fetch batches ahead; the same training
    with any number of them."""
    play: PlayUse = field(default_factory=PlayUse)
    fixed_alpha: bool = False
    """How far the TTT branches are open stays as it starts."""
    shared: Path | None = None
    """Folder of the vision tower and its output on every frame, where trainings share them; None: their own."""

    @property
    def sees(self) -> bool:
        """Whether the vision tower that it starts with has learned."""
        return self.start is not None or self.tower is not None

    def check(self, world: World) -> None:
        """What cannot go together, or not on this machine.

        Raises:
            ValueError: says what, and what to do.
        """
        existing_device(world.device)
        if self.turned_cameras and self.rehearsal.contrastive.weight:
            raise ValueError("the contrastive loss takes no turned cameras: its twins differ in colours alone")
        if self.workers < 0:
            raise ValueError(f"{self.workers} workers cannot load data; give 0 (none) or more")
        if self.strategy == "fsdp" and world.size > 1 and (self.compile or self.held_out.rigs):
            raise ValueError("FSDP takes neither `compile` nor held-out rigs yet; leave them out, or use DDP")


def pretrain(
    model_config: VLAConfig,
    data: SourceData | Iterable[str | Path],
    out: Path,
    config: PretrainConfig,
    draw: DrawPerturbation,
    *,
    tokenizer: Tokenizer | None = None,
    on_save: Callable[[VLA, TrainState], None] | None = None,
    world: World = ALONE,
) -> VLA | None:
    """Train a model on source data sets; interrupted, the same call goes on where it stopped.

    Args:
        data: data sets with play and demonstrations of many rigs, or their names (see `SourceData.open`).
        out: receives checkpoints, logs, the tower and the features.
        draw: the bodies that rehearsal may make of a rig.
        tokenizer: what instructions are read with, where the model has words of its own; None: bytes.
        on_save: called with every checkpoint, in the main process.
        world: the processes that share the training (`train.world.open_world`); each of them calls this.

    Returns:
        The model as it is to be shipped: weights averaged and adapters merged where they are. None but in the main
        process.

    Raises:
        FileNotFoundError, ValueError: data or snapshots are missing, damaged or do not suit the model; then `out` is
            not touched.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step that was running is saved, and `on_save` was called with it.
    """
    config.check(world)
    source = data if isinstance(data, SourceData) else SourceData.open(data)
    pictures = None if config.snapshots is None else Snapshots.open(config.snapshots, model_config.image_size)
    _check_pictures(source, model_config, config)
    odds = embodiment_odds(source, config.data_weights) if config.data_weights else None
    checkpoint.seed_everything(config.seed)
    model = _untrained(model_config, config)
    store = out if config.shared is None else config.shared
    store.mkdir(parents=True, exist_ok=True)
    with world.main_first():
        cache = EpisodeCache.build(
            source, image_size=model_config.image_size, progress=world.main, workers=config.workers
        )
        if pictures is None and not config.sees:
            pictures = _labelled_frames(cache, model)
        if pictures is not None:
            prepare_tower(model, pictures, store, config.pointing, sees=config.sees)
        model.to(world.device).vision.eval().requires_grad_(False)
        looks = (RECOLOURED,) if config.rehearsal.contrastive.weight > 0 else turned_looks(config.turned_cameras)
        features = frame_features(model, cache, store, looks=looks)
    rigs, held_out = hold_out(np.unique(cache.embodiment_index), config.held_out.rigs, config.seed)
    words = ByteTokenizer(model_config.max_token_len, model_config.prompt_merges) if tokenizer is None else tokenizer
    sources = partial(_sources, cache, features, model_config, words, draw, config, odds)
    checkpoint.seed_everything(config.seed)  # the same start whether the tower was trained just now or before
    rehearsal = dataclasses.replace(config.rehearsal, seed=config.seed)
    objective = make_objective(model, sources(rigs), rehearsal, world, config.workers)
    validate = None
    if len(held_out):
        validate = HeldOut(model, sources(held_out), rehearsal, config.held_out, world)
    _prepare(model, config, world)
    engine = make_engine(model, world, config.strategy)
    about = _about(model_config, source, config)
    state = make_state(model.train(), objective, config.optim, config.steps, engine, about)
    with closing(objective):
        return _fit(state, out, config, on_save, validate)


def _untrained(model_config: VLAConfig, config: PretrainConfig) -> VLA:
    """The model as the training finds it."""
    model = VLA(model_config)
    if config.start is not None:
        load_tensors(model, unique_tensors(load_model(config.start)), str(config.start))
    if config.tower is not None:
        seeing = load_model(config.tower).vision
        load_tensors(model.vision, unique_tensors(seeing), f"the vision tower of {config.tower}")
    return model


def _sources(
    cache: EpisodeCache,
    features: FrameFeatures,
    model: VLAConfig,
    tokenizer: Tokenizer,
    draw: DrawPerturbation,
    config: PretrainConfig,
    odds: np.ndarray | None,
    rigs: np.ndarray,
) -> VirtualSources:
    """The bodies that some rigs may become."""
    return VirtualSources(
        cache,
        features,
        tokenizer,
        ModelShape(model.action_horizon, model.action_dim, model.state_dim, model.next_offset),
        draw,
        rigs=rigs,
        rig_odds=odds,
        task_weights=config.task_weights,
        keypoint_words=config.keypoint_words,
        play=config.play,
        any_look=config.turned_cameras > 0,
    )


def _fit(
    state: TrainState,
    out: Path,
    config: PretrainConfig,
    on_save: Callable[[VLA, TrainState], None] | None,
    validate: HeldOut | None,
) -> VLA | None:
    """The training itself; returns the model as it is to be shipped, in the main process."""

    def saved(state: TrainState) -> None:
        shipped = finished(state)
        if shipped is not None and on_save is not None:
            on_save(shipped, state)

    if not run_training(state, out, config.loop, on_save=saved, validate=validate):
        saved(state)
        state.engine.world.wait()  # a process that ends takes down those that still write
        told = f"stopped at step {state.step} of {state.total_steps}; the same command goes on from there"
        raise KeyboardInterrupt(told)
    shipped = finished(state)
    return None if shipped is None else shipped.eval()


def _prepare(model: VLA, config: PretrainConfig, world: World) -> None:
    """What is done to the model from outside before it learns."""
    freeze(model, config.freeze)
    if config.fixed_alpha:
        for layer in model.ttt_layers:
            layer.alpha.requires_grad_(False)
    if config.lora.rank:
        add_lora(model, config.lora).to(world.device)
    if config.optim.precision == "bf16":
        keep_float32(model, world.device)
    recompute_blocks(model, config.recompute)
    if config.compile:
        compile_streams(model)


def _about(model_config: VLAConfig, source: SourceData, config: PretrainConfig) -> Mapping[str, Any]:
    """What the training is, as JSON values; what may change when it goes on stands under `machine`."""
    data = {
        "fingerprint": source.fingerprint,
        "cameras": source.cameras,
        "features": None if source.features is None else source.features.name,
    }
    training = dataclasses.asdict(config)
    machine = {name: training.pop(name) for name in MACHINE} | {"data": [reader.root for reader in source.readers]}
    told = {"model": config_to_dict(model_config), "data": data, "training": training, "machine": machine}
    return json.loads(json.dumps(told, default=str))


def _check_pictures(source: SourceData, model_config: VLAConfig, config: PretrainConfig) -> None:
    """Raises `ValueError` unless the data have the model's cameras, and its tower something to learn on."""
    source.require_cameras(model_config.cameras)
    if config.turned_cameras and source.features is not None:
        raise ValueError("stored features are of the recorded cameras: use them, or turned cameras, not both")
    if config.sees or config.snapshots is not None or not isinstance(model_config.vision, KeypointTowerConfig):
        return
    advice = "record pictures to learn on (`selfalign snapshots`) and give them with --snapshots, or start from a "
    advice += "checkpoint whose tower has learned to see (--start, or --tower for that alone)"
    if POINTS not in source.info.extra:
        raise ValueError(f"{source.readers[0].root} does not say where things are in its pictures: {advice}")
    if len(model_config.cameras) > 1:
        told = ", ".join(model_config.cameras)
        raise ValueError(
            f"{source.readers[0].root} says where things are in the pictures of one camera only, and the model has "
            f"{told}: {advice}"
        )


def _labelled_frames(cache: EpisodeCache, model: VLA) -> Snapshots | None:
    """The recorded frames, where the tower learns from what is where in them; None: it does not learn to point."""
    if not isinstance(model.vision, KeypointTower):
        return None
    (camera,) = model.config.cameras
    return Snapshots(cache.images(camera), cache.column(POINTS))


def prepare_tower(model: VLA, labelled: Snapshots, out: Path, config: PointingConfig, *, sees: bool = False) -> None:
    """Train the vision tower to point, from where it stopped; or load the one in `out`.

    Args:
        sees: it has learned before, and goes on from there.

    Raises:
        ValueError: the tower in `out` has learned otherwise, on other pictures or from another start.
    """
    path, about, unfinished = out / "tower.pt", out / "tower.json", out / "tower-training.pt"
    if not isinstance(model.vision, KeypointTower):
        return
    start = _digest(model.vision) if sees else None
    told = {"pictures": labelled.fingerprint, "start": start, **dataclasses.asdict(config)}
    if path.is_file():
        load_tensors(model.vision, torch.load(path, weights_only=True), str(path))
        learned = json.loads(about.read_text())
        if "pictures" not in learned:  # as files of before: these are its pictures if it errs there as it did
            told |= _pointing_error(model.vision, labelled)
        told.pop("seed")  # any: where a training is repeated, its tower need not be
        other = [name for name, value in told.items() if name in learned and not _alike(learned[name], value)]
        if other:
            raise ValueError(
                f"{path} has learned otherwise or on other pictures ({', '.join(other)}): a folder serves trainings "
                "whose tower learns alike; give another one"
            )
        return
    train_tower(model.vision, labelled.images, labelled.points, config, unfinished)
    about.write_text(json.dumps({**_pointing_error(model.vision, labelled), **told}))
    write_atomically(path, lambda temporary: torch.save(unique_tensors(model.vision), temporary))
    unfinished.unlink(missing_ok=True)


def _alike(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, list) and np.allclose(one, other, rtol=1e-3, equal_nan=True))


def _pointing_error(tower: KeypointTower, labelled: Snapshots) -> dict[str, list[float]]:
    rows = np.linspace(0, len(labelled.images) - 1, 2000).astype(int)
    return pointing_error(tower, labelled.images[rows], labelled.points[rows])


def frame_features(
    model: VLA, cache: EpisodeCache, out: Path, batch: int = 256, looks: Sequence[str] = ()
) -> FrameFeatures:
    """The tower's tokens of every frame, computed once and kept in `out`; sets the model's feature statistics.

    Where the data carry stored features, next observations are told by those; they stay those of the recorded
    frames, and so do shrunk pictures.

    Args:
        looks: how frames look otherwise (`align.looks`).

    Raises:
        ValueError: stored features of some cameras only, or of another size than the model takes.
    """
    stored = stored_features({name: cache.column(name) for name in cache.column_names}, model.config.cameras)
    if stored is not None:
        check_size(stored.shape[1:], model)
    tokens = _tokens(model, cache, out, batch)
    if stored is not None:
        following = torch.from_numpy(stored).float()
    else:
        following = _shrunk(model, cache) if model.config.next_pixels else _summaries(model, tokens)
    mean, std = following.mean(0), following.std(0).clamp_min(1e-3)
    model.feature_mean.copy_(mean)
    model.feature_std.copy_(std)
    told_by_tower = stored is None and not model.config.next_pixels
    others = []
    for look in looks:
        seen = _tokens(model, cache, out, batch, look)
        shown = _summaries(model, seen) if told_by_tower else following
        others.append(FrameFeatures(seen, ((shown - mean) / std).numpy()))
    return FrameFeatures(tokens, ((following - mean) / std).numpy(), tuple(others))


def trained_features(model: VLA, cache: EpisodeCache, out: Path, batch: int = 256) -> FrameFeatures:
    """As `frame_features`, for a model that is trained: with its own feature statistics, which stay as they are.

    Raises:
        ValueError: the model knows next observations otherwise than by its tower.
    """
    tokens = _tokens(model, cache, out, batch)
    following = _summaries(model, tokens)
    if following.shape[1:] != model.feature_mean.shape:
        raise ValueError(
            "features of recordings are those of the model's own tower, and the model was trained on others"
        )
    return FrameFeatures(tokens, ((following - model.feature_mean.cpu()) / model.feature_std.cpu()).numpy())


def _tokens(model: VLA, cache: EpisodeCache, out: Path, batch: int, look: str | None = None) -> dict[str, np.ndarray]:
    # Another tower or other recordings, another file: trainings share folders, and `start` may bring a tower.
    tower, pictures = _digest(model.vision), hashlib.sha256(cache.pictures.encode()).hexdigest()[:8]
    suffix, tokens = "" if look is None else f"-{look}", {}
    for camera in model.config.cameras:
        found = _unnamed_tokens(model, cache, camera, out / f"tokens-{camera}-{tower}{suffix}.npy", batch, look)
        if found is None:
            path = out / f"tokens-{camera}-{tower}-{pictures}{suffix}.npy"
            found = _tower_tokens(model, cache, camera, path, batch, look)
        tokens[camera] = found
    return tokens


@torch.no_grad()
def _summaries(model: VLA, tokens: Mapping[str, np.ndarray], block: int = 8192) -> Tensor:
    """The tower's own features [frames, n, F] of all cameras, not normalised."""
    starts = range(0, len(next(iter(tokens.values()))), block)
    blocks = ({c: torch.from_numpy(v[at : at + block]).float() for c, v in tokens.items()} for at in starts)
    return torch.cat([model.summaries(seen) for seen in blocks])


@torch.no_grad()
def _shrunk(model: VLA, cache: EpisodeCache, block: int = 1024) -> Tensor:
    """The pictures of all cameras, shrunk [frames, n, F], not normalised."""
    images = {camera: cache.images(camera) for camera in model.config.cameras}
    starts = track(range(0, cache.num_frames, block), description="shrinking pictures")
    blocks = ({c: pixels_to_model(v[at : at + block]) for c, v in images.items()} for at in starts)
    return torch.cat([model.summaries(seen) for seen in blocks])


def _digest(module: torch.nn.Module) -> str:
    """Eight characters that tell one set of weights from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unique_tensors(module).items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def _unnamed_tokens(
    model: VLA, cache: EpisodeCache, camera: str, path: Path, batch: int, look: str | None
) -> np.ndarray | None:
    """What is in a file that does not name its recordings, as files of before do not; None unless the tower sees the
    same in a few blocks of these."""
    if not path.is_file() or len(found := _mapped(path)) != cache.num_frames:
        return None
    for block in np.unique(np.linspace(0, (len(found) - 1) // batch, 4).astype(int)):
        rows = slice(block * batch, (block + 1) * batch)
        pixels = next(picture_blocks(cache, camera, look, batch, rows.start))
        seen = model.vision(pixels.to(model.feature_mean.device)).float().cpu().numpy()
        if not np.allclose(found[rows], seen, rtol=2e-3, atol=2e-3):  # float16 has three digits
            return None
    return found


@torch.no_grad()
def _tower_tokens(model: VLA, cache: EpisodeCache, camera: str, path: Path, batch: int, look: str | None) -> np.ndarray:
    if path.is_file():
        return _mapped(path)
    partial, count = path.with_suffix(".partial.npy"), path.with_suffix(".rows")
    values, done = _begun(partial, count, cache.num_frames)
    blocks, left = picture_blocks(cache, camera, look, batch, done), -(-(cache.num_frames - done) // batch)
    for number, pixels in enumerate(track(blocks, description=f"features of {camera}", total=left), 1):
        block = model.vision(pixels.to(model.feature_mean.device)).half().cpu().numpy()
        if values is None:
            shape = (cache.num_frames, *block.shape[1:])
            values = map_array(partial, np.float16, shape)
        values[done : done + len(block)] = block
        done += len(block)
        if number % KEEP_EVERY == 0:
            values.flush()
            count.write_text(str(done))
    assert values is not None
    values.flush()
    partial.replace(path)
    count.unlink(missing_ok=True)
    return _mapped(path)


def _begun(partial: Path, count: Path, frames: int) -> tuple[np.memmap | None, int]:
    """What an interrupted run has left, and how many of its rows are whole."""
    if partial.is_file() and count.is_file():
        values = np.load(partial, mmap_mode="r+")
        if len(values) == frames:
            return values, int(count.read_text() or 0)
    count.unlink(missing_ok=True)  # it is not of the file that is begun now
    return None, 0


def _mapped(path: Path) -> np.ndarray:
    """The array in a file, which stays there; writable (in memory), as torch warns of arrays that are not."""
    return np.asarray(np.load(path, mmap_mode="c"))
