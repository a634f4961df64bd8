"""The processes of a training: which one this is, and the few words that they exchange."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from selfalign.model.device import existing_device

PATIENCE = timedelta(hours=6)
"""How long a process waits for another one, which may be computing features."""


@dataclass(frozen=True)
class World:
    """One of `size` processes; alone, it exchanges nothing."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """The process that writes files and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things, in the order of the ranks.

        Raises:
            ValueError: they cannot be shared out evenly.
        """
        if count % self.size:
            raise ValueError(f"{count} slots cannot be shared evenly by {self.size} processes; take a multiple")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other along the first axis."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def all(self, value: bool) -> bool:
        """Whether it is true in every process."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def any(self, value: bool) -> bool:
        """Whether it is true in some process."""
        return not self.all(not value)

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes, which must give the same names."""
        if self.size == 1:
            return dict(numbers)
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(numbers, (values / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in the main process, then in the others: they find what it has left on disk."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


ALONE = World()


@contextmanager
def open_world(device: str = "cpu") -> Iterator[World]:
    """The processes that torchrun has started, or this one alone.

    Args:
        device: "cpu", or "cuda": then each process takes the GPU of its local rank.

    Raises:
        ValueError: there is no such device.
    """
    own = existing_device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(device=own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()
