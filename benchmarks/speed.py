"""Ours against openpi's own PyTorch model: the same shapes, weights and inputs, in one process, float32 on a CPU.

    OPENPI=path/to/openpi python benchmarks/speed.py --out benchmarks/results/speed_cpu.json

Before anything is timed, the two must agree. Runs alternate, so that a busy machine slows both. benchmarks/README.md
says how to make the environment.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from openpi_reference import Reference, checkout_at
from torch import Tensor

from selfalign import presets
from selfalign.model.config import VLAConfig
from selfalign.model.losses import ACTION, FlowNoise
from selfalign.model.policy import VLA
from selfalign.model.sampler import Sampler, SamplerConfig
from selfalign.model.streams import StreamConfig
from selfalign.model.vision import SigLIPConfig
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.types import ActionChunk, Observation, Transition


@dataclass(frozen=True)
class Config:
    """What to compare."""

    openpi: Path | None = None
    """A checkout of openpi; None: the environment variable OPENPI says where."""
    out: Path | None = None
    """JSON file of the results."""
    model: Literal["pi0", "pi05"] = "pi0"
    size: Literal["bench", "tiny"] = "bench"
    """bench: VLM 512, expert 256, 6 layers, head_dim 64, SigLIP 384 x 8. tiny: seconds, to see whether it runs."""
    batch: int = 1
    """Samples of `sample_actions`."""
    train_batch: int = 2
    words: int = 20
    """Tokens of the prompt that are not padding."""
    steps: int = 10
    repeats: int = 7
    threads: int = 2
    compile: bool = False
    """Sample through the compiled `Sampler`; openpi's model stays as it is."""


def sizes(model: str, size: str) -> VLAConfig:
    """pi0 or pi0.5 with three cameras, scaled down."""
    plain = presets.get(model)
    if size == "tiny":
        heads: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 16, "depth": 2}
        widths, tower = ((64, 128), (32, 64)), SigLIPConfig(width=32, mlp_dim=64, depth=2, num_heads=2)
    else:
        heads = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 64, "depth": 6}
        widths, tower = ((512, 2048), (256, 1024)), SigLIPConfig(width=384, mlp_dim=1536, depth=8, num_heads=6)
    vlm, action = (StreamConfig(width, mlp_dim, **heads) for width, mlp_dim in widths)
    return replace(plain, vlm=vlm, action=action, vision=tower, vocab_size=1024)


def random_model(config: VLAConfig) -> VLA:
    """Every parameter random, none of them at a value of the initialisation that hides something."""
    model = VLA(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.02 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
            if "norm1" in name or "norm2" in name or "post_norm" in name:
                parameter.add_(1.0)
    return model


def make_batch(config: VLAConfig, size: int, words: int, masked: bool) -> Transition:
    """Random inputs; with `masked`, no sample has the last camera."""
    side, length = config.image_size, config.max_token_len
    mask = torch.arange(length).expand(size, -1) < words
    observation = Observation(
        images={camera: torch.rand(size, 3, side, side) * 2 - 1 for camera in config.cameras},
        image_masks={c: torch.full((size,), not (masked and c == config.cameras[-1])) for c in config.cameras},
        state=torch.randn(size, config.state_dim),
        tokens=torch.randint(1, config.vocab_size, (size, length)) * mask,
        token_mask=mask,
    )
    return Transition(observation, ActionChunk(torch.randn(size, config.action_horizon, config.action_dim)))


def sampling(ours: VLA, theirs: Reference, config: Config, masked: bool) -> tuple[Callable[[], Tensor], ...]:
    """`sample_actions` of both, on one observation."""
    batch = make_batch(ours.config, config.batch, config.words, masked)
    noise, seen = torch.randn_like(batch.actions.values), batch.observation
    sampler = Sampler(ours.eval(), SamplerConfig(config.steps)) if config.compile else None

    def sample() -> Tensor:
        if sampler is not None:
            return sampler(seen, noise=noise)
        return ours.eval().sample_actions(seen, noise=noise, num_steps=config.steps)

    return sample, lambda: theirs.sample_actions(seen, noise, config.steps)


def training(ours: VLA, theirs: Reference, config: Config) -> tuple[Callable[[], Tensor], ...]:
    """Forward and backward pass of both, on one batch with three live cameras."""
    batch = make_batch(ours.config, config.train_batch, config.words, masked=False)
    noise, time = FlowNoise.like(batch), torch.rand(config.train_batch)

    def run(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()

    return (
        lambda: run(ours.train(), lambda: ours.losses(batch, noise=noise, time=time, parts=(ACTION,)).total),
        lambda: run(theirs.model, lambda: theirs.loss(batch, noise.actions, time)),
    )


def compare(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int) -> dict[str, Any]:
    """Seconds of both, in turns, after a run of each that must agree."""
    difference = float((ours() - theirs()).abs().max())
    if not difference < 1e-3:
        raise SystemExit(f"the two models differ by {difference:.1e}: there is nothing to compare")
    seconds: dict[str, list[float]] = {"ours": [], "openpi": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("openpi", theirs)):
            watch = Stopwatch()
            run()
            seconds[name].append(watch.seconds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"ratio": medians["openpi"] / medians["ours"], "median": medians, "all": seconds, "difference": difference}


def main(config: Config) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(config.threads)
    watch, ours = Stopwatch(), random_model(sizes(config.model, config.size))
    theirs = Reference.of(checkout_at(config.openpi), ours)
    cases = {
        "sample_actions, third camera masked": sampling(ours, theirs, config, masked=True),
        "sample_actions, three cameras": sampling(ours, theirs, config, masked=False),
        "forward and backward": training(ours, theirs, config),
    }
    results = {}
    for name, runs in cases.items():
        results[name] = compare(*runs, config.repeats)
        ms = {key: 1e3 * value for key, value in results[name]["median"].items()}
        print(f"{name}: {ms['ours']:.1f} ms, openpi {ms['openpi']:.1f} ms, {results[name]['ratio']:.2f} times as fast")
    if config.out is not None:
        settings = {key: value for key, value in vars(config).items() if key not in ("openpi", "out")}
        write_json(config.out, {"settings": settings, "results": results, **provenance(watch.seconds)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
