"""Samples a second of our loader and of LeRobot's own, on the same video data set, by turns in one run.

    python benchmarks/loader.py --lerobot-python lerobot_env/bin/python --out benchmarks/results/loader.json

A sample is a frame with its cameras, its chunk of actions, and (for alignment) the cameras one chunk later. Frames are
drawn at random, the same ones for all. `ours` reads the videos as `FrameWindows` does, `ours_cached` the decoded form
that training uses (`EpisodeCache`), `lerobot` is `LeRobotDataset` in an environment of its own (`pip install lerobot`).
"""

import json
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader, Dataset

from selfalign.data.cache import EpisodeCache
from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.windows import FrameWindows
from selfalign.provenance import Stopwatch, provenance, write_json

CAMERAS = ("base", "wrist")
MADE_WITH = ("episodes", "frames", "size", "fps", "seed")
"""What the data depend on."""


@dataclass(frozen=True)
class Config:
    """What is read, and how."""

    lerobot_python: Path | None = None
    """Python of an environment with `lerobot`; None: only ours."""
    episodes: int = 20
    frames: int = 200
    """Of each episode."""
    size: int = 224
    """Pixels of a camera's side."""
    fps: int = 20
    horizon: int = 16
    """Actions in a chunk."""
    next_observation: bool = True
    """Read the cameras at the chunk's end, too."""
    workers: int = 2
    batch_size: int = 16
    batches: int = 40
    """Timed, after two that start the workers."""
    rounds: int = 3
    """Turns of each loader; the best and all are told."""
    video_backend: str = "pyav"
    """LeRobot's decoder: pyav, or torchcodec where its environment has it."""
    seed: int = 0
    data: Path | None = None
    """Where to make the data set, kept; None: in a temporary folder. One that is there must be of the same flags."""
    out: Path | None = None


class Windows(Dataset):
    """Our windows as tensors, as LeRobot gives them."""

    def __init__(self, root: Path, offsets: dict[str, list[float]]) -> None:
        self.windows = FrameWindows(LeRobotReader(root), offsets)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.windows[int(index)]
        return {name: torch.as_tensor(item[name]) for name in item if name in (STATE, ACTION) or IMAGE_PREFIX in name}


class Decoded(Dataset):
    """The same samples from the decoded form."""

    def __init__(self, root: Path, horizon: int, following: bool, cache_dir: Path) -> None:
        self.cache = EpisodeCache.build(SourceData.open(root), cache_dir)
        self.horizon, self.following = horizon, following

    def __len__(self) -> int:
        return self.cache.num_frames

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        steps = self.horizon + 1 if self.following else self.horizon
        frames = self.cache.chunk(np.array([index]), steps)[0][0]
        seen = frames[[0, -1]] if self.following else frames[:1]
        item = {IMAGE_PREFIX + c: torch.from_numpy(self.cache.images(c)[seen]) for c in CAMERAS}
        item[ACTION] = torch.from_numpy(self.cache.column(ACTION)[frames[: self.horizon]])
        return {**item, STATE: torch.from_numpy(np.array(self.cache.column(STATE)[index]))}


def write_data(root: Path, config: Config) -> None:
    """Smooth moving pictures: video of noise would measure the codec's worst case."""
    rng = np.random.default_rng(config.seed)
    y, x = np.mgrid[0 : config.size, 0 : config.size] / config.size
    with LeRobotWriter(root, fps=config.fps, video=True) as writer:
        for _ in range(config.episodes):
            phase, speed = rng.uniform(0, 6, (len(CAMERAS), 3)), rng.uniform(0.02, 0.1, (len(CAMERAS), 3))
            waves = [
                [np.sin(8 * x + p[0] + s[0] * t) * np.cos(6 * y + p[1] + s[1] * t) for t in range(config.frames)]
                for p, s in zip(phase, speed, strict=True)
            ]
            grey = (127 + 120 * np.array(waves)).astype(np.uint8)
            images = {c: np.repeat(g[..., None], 3, axis=-1) for c, g in zip(CAMERAS, grey, strict=True)}
            numbers = {n: rng.normal(size=(config.frames, 8)).astype(np.float32) for n in ("state", "action")}
            writer.add_episode(Episode(images, **numbers, task="move", fps=config.fps))


def made(root: Path, config: Config) -> Path:
    """The data set, made where it is not there. What it was made with stands beside it.

    Raises:
        ValueError: what is there was made otherwise, or not to its end.
    """
    told, beside = {name: getattr(config, name) for name in MADE_WITH}, root.with_name(f"{root.name}.json")
    if not root.exists():
        beside.unlink(missing_ok=True)
        write_data(root, config)
        write_json(beside, told)
    if not beside.is_file() or json.loads(beside.read_text()) != told:
        raise ValueError(f"{root} was not made with {told}, by what {beside} says; name another --data, or remove it")
    return root


def offsets(config: Config) -> dict[str, list[float]]:
    """What LeRobot calls delta timestamps, seconds."""
    seen = [0.0, config.horizon / config.fps] if config.next_observation else [0.0]
    chunk = [step / config.fps for step in range(config.horizon)]
    return {ACTION: chunk} | {IMAGE_PREFIX + camera: seen for camera in CAMERAS}


def measure(dataset: Dataset, config: Config) -> float:
    """Samples a second over the timed batches."""
    count = (config.batches + 2) * config.batch_size
    order = np.random.default_rng(config.seed).integers(config.episodes * config.frames, size=count).tolist()
    loader = DataLoader(dataset, config.batch_size, sampler=order, num_workers=config.workers)
    began, samples = 0.0, 0
    for number, batch in enumerate(loader):
        if number == 1:  # what comes before is the start of the workers
            began = time.perf_counter()
        if number >= 2:
            samples += len(batch[STATE])
    return samples / (time.perf_counter() - began)


def measure_lerobot(root: Path, config: Config) -> dict[str, Any]:
    """The same in LeRobot's environment."""
    script = Path(__file__).with_name("loader_lerobot.py")
    told = json.dumps({**asdict(config), "root": str(root), "offsets": offsets(config)}, default=str)
    done = subprocess.run([str(config.lerobot_python), str(script), told], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"LeRobot's loader failed in {config.lerobot_python}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> None:
    watch, rates, versions = Stopwatch(), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        root = made(config.data or Path(temporary) / "data", config)
        ours = Windows(root, offsets(config))
        cached = Decoded(root, config.horizon, config.next_observation, Path(temporary) / "cache")
        for turn in range(config.rounds):
            rates.setdefault("ours", []).append(measure(ours, config))
            rates.setdefault("ours_cached", []).append(measure(cached, config))
            if config.lerobot_python is not None:
                found = measure_lerobot(root, config)
                rates.setdefault("lerobot", []).append(found["samples_per_second"])
                versions = found["versions"]
            print(
                f"round {turn + 1}: " + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items()), flush=True
            )
    result = {
        "settings": json.loads(json.dumps(asdict(config), default=lambda path: path.name)),
        "samples_per_second": {name: round(max(rate), 1) for name, rate in rates.items()},
        "rounds": {name: [round(value, 1) for value in rate] for name, rate in rates.items()},
        "lerobot_environment": versions,
        "provenance": provenance(watch.seconds),
    }
    print(json.dumps(result["samples_per_second"]))
    if config.out is not None:
        print(f"Written to {write_json(config.out, result)}")


if __name__ == "__main__":
    main(tyro.cli(Config))
