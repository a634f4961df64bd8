"""DDP and FSDP2 around a training step. Both are PyTorch's; the model knows nothing of them.

Every process draws the batch of all slots from the same random numbers and computes the losses of its own slots, so a
training in N processes is the training in one, up to the order of sums.
"""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from selfalign.model.losses import Losses
from selfalign.model.policy import VLA
from selfalign.train.recompute import blocks
from selfalign.train.world import ALONE, World

Strategy = Literal["ddp", "fsdp"]


class Engine(Protocol):
    """Runs an objective's losses so that their gradients are those of all processes."""

    @property
    def world(self) -> World: ...

    @property
    def sharded(self) -> bool:
        """Whether the parameters outside of `losses` are shards."""
        ...

    def losses(self, objective: Any, part: Any, *, last: bool) -> Losses:
        """`objective.losses(part)`; gradients are exchanged in the backward pass of a step's last part."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    world: World = ALONE
    sharded: bool = False

    def losses(self, objective: Any, part: Any, *, last: bool) -> Losses:
        return objective.losses(part)


class _Forward(nn.Module):
    """An objective's losses as the forward of a module: DDP and FSDP hook into those, and into a dict's tensors."""

    def __init__(self, model: VLA):
        super().__init__()
        self.model = model
        self.ttt_layers = nn.ModuleList(model.ttt_layers)

    def forward(self, objective: Any, part: Any) -> dict[str, Tensor]:
        losses = objective.losses(part)
        return {f.name: value for f in fields(losses) if (value := getattr(losses, f.name)) is not None}


class DataParallel:
    """DDP: every process has the whole model; gradients are averaged."""

    sharded = False

    def __init__(self, model: VLA, world: World):
        self.world = world
        devices = [world.device] if world.device.type == "cuda" else None
        # The last VLM layer computes keys and values only, so some parameters have no gradient.
        self._module = nn.parallel.DistributedDataParallel(
            _Forward(model), device_ids=devices, broadcast_buffers=False, find_unused_parameters=True
        )

    def losses(self, objective: Any, part: Any, *, last: bool) -> Losses:
        with nullcontext() if last else self._module.no_sync():
            return Losses(**self._module(objective, part))


class FullySharded:
    """FSDP2: every process has a shard of each parameter, of its gradient and of its moments.

    Each block is gathered when it runs. What is not a block (embeddings, heads, the TTT layers that two experts share,
    the last VLM layer, of which only keys and values are computed) is gathered for the whole step.
    """

    sharded = True

    def __init__(self, model: VLA, world: World):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.world = world
        mesh = init_device_mesh(world.device.type, (world.size,))
        shared = {p for layer in model.ttt_layers for p in layer.parameters()}
        for block in blocks(model):
            if block is not model.mixture.vlm.blocks[-1]:
                fully_shard(block, mesh=mesh, ignored_params=shared)
        self._module: Any = fully_shard(_Forward(model), mesh=mesh)

    def losses(self, objective: Any, part: Any, *, last: bool) -> Losses:
        self._module.set_requires_gradient_sync(last)
        return Losses(**self._module(objective, part))


def make_engine(model: VLA, world: World, strategy: Strategy = "ddp") -> Engine:
    """What runs the model in this world. FSDP replaces the parameters by shards, so optimisers are made afterwards."""
    if world.size == 1:
        return Alone(world)
    return FullySharded(model, world) if strategy == "fsdp" else DataParallel(model, world)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards, gathered in every process; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
