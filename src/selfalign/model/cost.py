"""What each phase of a model costs, and the least time that physics allows it on a device.

The phases run on the meta device, where tensors have shapes but no memory, and are counted as they run: so the counts
are those of the code, whatever the sizes are. FLOPs are those of matrix products, convolutions and attention (a
multiply-add is two). Bytes are what must move at least: every weight and cached key that a phase reads, once in the
forward and once in the backward pass, and the cache that a prefix writes; activations are taken to stay on the chip.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from selfalign.model.config import VLAConfig
from selfalign.model.losses import ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.precision import Precision, set_precision
from selfalign.model.prefix import KeyValues, PrefixCache
from selfalign.model.weights import unique_tensors
from selfalign.types import ActionChunk, Observation, Transition


@dataclass(frozen=True)
class Device:
    """A device's peak, from its data sheet."""

    tflops: float
    """10^12 bfloat16 operations a second, without sparsity."""
    gbps: float
    """10^9 bytes of memory a second."""


DEVICES = {
    "h200": Device(989, 4800),
    "h100": Device(989, 3350),
    "a100": Device(312, 2039),
    "l40s": Device(362, 864),
    "rtx4090": Device(165, 1008),
}


@dataclass(frozen=True)
class Cost:
    """Work of a phase."""

    flops: int
    bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def bound_ms(self, device: Device) -> float:
        """The least time in ms: arithmetic or memory, whichever takes longer."""
        return max(self.flops / device.tflops / 1e9, self.bytes / device.gbps / 1e6)


@dataclass(frozen=True)
class Phase:
    """A part of the model's work, and how often it runs in one whole."""

    name: str
    cost: Cost
    times: int = 1


@dataclass(frozen=True)
class Workload:
    """What the phases are counted for."""

    batch: int = 1
    prompt: int | None = None
    """Tokens of the prompt; None: as many as the model reads at most."""
    cameras: int | None = None
    """Cameras that are not masked; None: all."""
    num_steps: int = 10
    """Denoising steps."""


def meta_model(config: VLAConfig, precision: Precision = "bf16") -> VLA:
    """The model without memory, frozen. The inner loop, which reads masks on the host, is left out."""
    config = replace(config, ttt=replace(config.ttt, meta_learning=False))
    with torch.device("meta"):
        return set_precision(VLA(config), precision).requires_grad_(False).eval()


@dataclass(frozen=True)
class TrainingMemory:
    """What a pretraining keeps in float32, bytes. Activations come on top; they depend on the batch."""

    model: int
    """Weights, and gradients and AdamW's two moments of what learns: all but the vision tower. (A moving average is
    4 bytes more for each number that learns; FSDP shares all of it out.)"""
    slot: int
    """A slot of the rehearsal: its context, that one's gradient and two moments."""


def training_memory(model: VLA) -> TrainingMemory:
    """What it takes to pretrain a model, which may be on the meta device."""
    tensors = unique_tensors(model)
    learning = {name for name, _ in model.named_parameters() if not name.startswith("vision.")}
    weights, learned = (sum(t.numel() for n, t in tensors.items() if n in some) for some in (tensors, learning))
    return TrainingMemory(4 * weights + 12 * learned, 16 * sum(t.numel() for t in model.prior().tensors))


def sampling_phases(model: VLA, work: Workload = Workload()) -> list[Phase]:
    """The phases of `sample_actions` in their order, for a model on the meta device."""
    batch = meta_batch(model, work)
    observation, state = batch.observation, batch.observation.state
    cache, prefix = _count(model, lambda: model.whole_prefix(observation, tuple(observation.images)))
    phases = [Phase("prefix: vision tower and VLM", prefix + Cost(0, _size(_tensors_of(cache))))]
    conds, ahead = _count(model, lambda: model.conditions(work.num_steps, state.device))
    if conds[0] is not None:
        phases.append(Phase("adaRMS modulations, all steps", ahead))
    time, context = torch.empty(work.batch, device="meta"), model.prior()
    _, step = _count(
        model,
        lambda: model.action_velocity(state, batch.actions.values, time, cache, context, conds[0]),
        _tensors_of(cache),
    )
    return [*phases, Phase("denoising step: action expert", step, work.num_steps)]


def align_step(model: VLA, work: Workload = Workload()) -> Phase | None:
    """One step of alignment on cached prefixes, forward and backward; None without an alignment expert."""
    if model.config.alignment is None:
        return None
    batch, cache = meta_batch(model, work), _meta_cache(model, work)
    context = model.prior().leaf()
    losses, forward = _count(
        model,
        lambda: model.losses(batch, context, prefix=cache, parts=(ALIGNMENT,)),
        _tensors_of(cache),
        grad=True,
    )
    _, backward = _count(model, lambda: torch.autograd.grad(losses.total, context.tensors), _tensors_of(cache))
    return Phase("align step: alignment expert, prefix cached", forward + backward)


def meta_batch(model: VLA, work: Workload) -> Transition:
    """A batch of the workload's shapes."""
    config = model.config
    cameras = config.cameras[: work.cameras]
    prompt = config.max_token_len if work.prompt is None else work.prompt
    b, size = work.batch, config.image_size
    with torch.device("meta"):
        observation = Observation(
            images={camera: torch.empty(b, 3, size, size) for camera in cameras},
            image_masks={camera: torch.empty(b, dtype=torch.bool) for camera in config.cameras},
            state=torch.empty(b, config.state_dim),
            tokens=torch.empty(b, prompt, dtype=torch.long),
            token_mask=torch.empty(b, prompt, dtype=torch.bool),
        )
        actions = ActionChunk(torch.empty(b, config.action_horizon, config.action_dim))
        return Transition(observation, actions, torch.empty(b, *model.feature_mean.shape))


def _meta_cache(model: VLA, work: Workload) -> PrefixCache:
    """A prefix of the workload's shapes."""
    vlm, observation = model.config.vlm, meta_batch(model, work).observation
    length = len(observation.images) * model.vision.num_tokens + observation.tokens.shape[1]

    def tensor() -> Tensor:
        shape = (work.batch, length, vlm.num_kv_heads, vlm.head_dim)
        return torch.empty(shape, dtype=model.mixture.vlm.dtype, device="meta")

    mask = torch.empty(work.batch, length, dtype=torch.bool, device="meta")
    return PrefixCache(tuple(KeyValues(tensor(), tensor()) for _ in range(vlm.depth)), mask)


def _count(
    model: VLA, run: Callable[[], Any], inputs: Iterable[Tensor] = (), *, grad: bool = False
) -> tuple[Any, Cost]:
    """What `run` returns and costs. Of memory, the model's tensors and `inputs` count."""
    meter = _Meter([*model.parameters(), *model.buffers(), *inputs])
    with torch.set_grad_enabled(grad), meter:
        result = run()
    return result, Cost(meter.flops, meter.bytes)


class _Meter(TorchDispatchMode):
    """FLOPs by torch's own formulas, and bytes that operations read of the watched tensors, each tensor once.

    Of a table that is looked up, only the rows count.
    """

    def __init__(self, watched: Iterable[Tensor]):
        super().__init__()
        self._sizes = {_place(t): t.numel() * t.element_size() for t in watched}
        self._read: set[int] = set()
        self._rows = self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if func is torch.ops.aten.embedding.default:
            self._rows += _size([out])
        else:
            leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            self._read |= {_place(t) for t in leaves} & self._sizes.keys()
        return out

    @property
    def bytes(self) -> int:
        return self._rows + sum(self._sizes[place] for place in self._read)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _tensors_of(cache: PrefixCache) -> list[Tensor]:
    return [t for kv in cache.layers for t in (kv.k, kv.v)]
