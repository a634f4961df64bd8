r"""One model on one device: `sample_actions` and a step of alignment at several batch sizes, beside their least times.

    python benchmarks/speed_device.py --out benchmarks/results/speed_gpu.json
    python benchmarks/speed_device.py --preset small --device cpu --peak h100 --batches 1 --align-batches 2 \
        --repeats 3 --no-compile

Random weights, bf16, three cameras, a prompt of 48 tokens, 10 denoising steps.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from selfalign import presets
from selfalign.model.config import VLAConfig
from selfalign.model.cost import DEVICES, Cost, Device, Workload, align_step, meta_model, sampling_phases
from selfalign.model.losses import ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.precision import Precision, set_precision
from selfalign.model.sampler import Sampler, SamplerConfig
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.types import ActionChunk, Observation, Transition


@dataclass(frozen=True)
class Config:
    """What to measure."""

    preset: str = "pi0"
    """The plain policy whose sampling is timed."""
    aligned: str = "pi0_aligned"
    """The policy whose alignment is timed; with another preset than pi0, give its own."""
    device: str = "cuda"
    precision: Precision = "bf16"
    batches: tuple[int, ...] = (1, 8, 32)
    align_batches: tuple[int, ...] = (8, 32)
    prompt: int = 48
    steps: int = 10
    repeats: int = 30
    compile: bool = True
    peak: str | None = None
    """Whose least times stand beside: a name of `selfalign inspect --device`; None: the device's own."""
    out: Path | None = None
    """JSON file of the results."""

    def bounds(self) -> Device:
        """The peak that the least times are for."""
        if self.peak is not None:
            if self.peak not in DEVICES:
                raise SystemExit(f"no device {self.peak!r}; there are: {', '.join(DEVICES)}")
            return DEVICES[self.peak]
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device
        known = [key for key in DEVICES if key in name.lower().replace(" ", "")]
        if not known:
            raise SystemExit(f"the peak of {name!r} is not known: give --peak, one of {', '.join(DEVICES)}")
        return DEVICES[known[0]]


def random_model(config: VLAConfig, asked: Config) -> VLA:
    """A frozen model on the device, made there, without a copy in float32."""
    with torch.device("meta"):
        model = set_precision(VLA(config), asked.precision)
    model.to_empty(device=asked.device).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.02 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
        if name.endswith(("norm1.weight", "norm2.weight", "post_norm.weight")):
            parameter.add_(1.0)
    model.feature_mean.zero_()
    model.feature_std.fill_(1.0)
    return model


def make_batch(model: VLA, size: int, prompt: int) -> Transition:
    """Random inputs, nothing masked."""
    config, side = model.config, model.config.image_size
    observation = Observation(
        images={camera: torch.rand(size, 3, side, side) * 2 - 1 for camera in config.cameras},
        image_masks={camera: torch.ones(size, dtype=torch.bool) for camera in config.cameras},
        state=torch.randn(size, config.state_dim),
        tokens=torch.randint(1, config.vocab_size, (size, prompt)),
        token_mask=torch.ones(size, prompt, dtype=torch.bool),
    )
    actions = ActionChunk(torch.randn(size, config.action_horizon, config.action_dim))
    return Transition(observation, actions, torch.randn(size, *model.feature_mean.shape)).to(model.feature_mean.device)


def measure(run: Callable[[], Any], config: Config) -> dict[str, float]:
    """Median and least time in ms, and the peak of memory in GB where the device tells it.

    The peak is that of the warming up too: a graph takes its memory while it is captured, and only uses it later.
    """
    cuda = config.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(config.device)
    for _ in range(3):
        run()
    times = []
    for _ in range(config.repeats):
        if cuda:
            torch.cuda.synchronize(config.device)
        watch = Stopwatch()
        run()
        if cuda:
            torch.cuda.synchronize(config.device)
        times.append(1e3 * watch.seconds)
    peak = {"peak_gb": torch.cuda.max_memory_allocated(config.device) / 1e9} if cuda else {}
    return {"median_ms": statistics.median(times), "least_ms": min(times), **peak}


def per_second(row: dict[str, float], size: int) -> dict[str, float]:
    """Samples a second at the median."""
    return {"samples_per_s": 1e3 * size / row["median_ms"]}


def sampling(config: Config, peak: Device) -> dict[str, Any]:
    """`sample_actions` as it is, and through the sampler (compiled; a graph on CUDA)."""
    model, meta = random_model(presets.get(config.preset), config), meta_model(presets.get(config.preset))
    sampler = Sampler(model, SamplerConfig(config.steps, compile=config.compile))
    rows = {}
    for size in config.batches:
        observation = make_batch(model, size, config.prompt).observation
        work = Workload(size, config.prompt, num_steps=config.steps)
        bound = sum(p.times * p.cost.bound_ms(peak) for p in sampling_phases(meta, work))
        eager = measure(lambda seen=observation: model.sample_actions(seen, num_steps=config.steps), config)
        rows[f"sample_actions, batch {size}, eager"] = {**eager, **per_second(eager, size), "bound_ms": bound}
        fast = measure(lambda seen=observation: sampler(seen), config)
        rows[f"sample_actions, batch {size}, sampler"] = {**fast, **per_second(fast, size), "bound_ms": bound}
    return rows


def aligning(config: Config, peak: Device) -> dict[str, Any]:
    """One step of alignment, its prefix cached or computed in the step."""
    model, meta = random_model(presets.get(config.aligned), config), meta_model(presets.get(config.aligned))
    rows = {}
    for size in config.align_batches:
        batch, context = make_batch(model, size, config.prompt), model.prior().leaf()
        optimizer = torch.optim.Adam(context.tensors, lr=1e-2)
        work = Workload(size, config.prompt)
        step = getattr(align_step(meta, work), "cost", Cost(0, 0))
        prefix = sampling_phases(meta, work)[0].cost

        def run(cache=None, batch=batch, context=context, optimizer=optimizer) -> None:
            with torch.no_grad():
                cache = model.prefix(batch.observation) if cache is None else cache
            optimizer.zero_grad()
            model.losses(batch, context, prefix=cache, parts=(ALIGNMENT,)).total.backward()
            optimizer.step()

        with torch.no_grad():
            cache = model.prefix(batch.observation)
        bounds = step.bound_ms(peak), step.bound_ms(peak) + prefix.bound_ms(peak)
        cached, whole = measure(lambda run=run, cache=cache: run(cache), config), measure(run, config)
        rows[f"align step, batch {size}, prefix cached"] = {**cached, "bound_ms": bounds[0]}
        rows[f"align step, batch {size}, prefix computed"] = {**whole, "bound_ms": bounds[1]}
    return rows


def main(config: Config) -> None:
    torch.manual_seed(0)
    watch, peak = Stopwatch(), config.bounds()
    aligned = config.preset if config.preset not in ("pi0", "pi05") else config.aligned
    config = replace(config, aligned=aligned)
    results = sampling(config, peak)
    if presets.get(aligned).alignment is not None:
        results |= aligning(config, peak)
    for name, row in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if config.out is not None:
        settings = {key: value for key, value in vars(config).items() if key != "out"}
        write_json(config.out, {"settings": settings, "results": results, **provenance(watch.seconds)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
