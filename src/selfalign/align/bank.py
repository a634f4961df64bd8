"""Play with its prefixes computed: everything that alignment reads again and again, made once.

The prefix does not depend on W, so its keys and values are computed once for each transition, by the frozen model. They
stay in memory up to a budget and go to a memory-mapped file beyond it.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor

from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model.files import reserve
from selfalign.model.prefix import KeyValues, PrefixCache
from selfalign.policy import Policy, concatenate
from selfalign.types import Transition

PREFIX_BATCH = 64
"""Transitions whose prefix is computed at once."""


@dataclass(frozen=True)
class MemoryBudget:
    """Where the keys and values of prefixes go."""

    megabytes: float = 2048.0
    """Of main memory; what needs more goes to a file that is deleted when it is no longer used."""
    spill_dir: Path | None = None
    """Folder of that file; None: the system's temporary folder."""


@dataclass(frozen=True, eq=False)
class PlayBank:
    """N transitions with their prefix caches."""

    transitions: Transition
    """Without pixels and image features: the prefix has read them."""
    prefix: PrefixCache
    device: torch.device

    @classmethod
    def build(
        cls,
        policy: Policy,
        play: Play,
        stats: NormStats,
        budget: MemoryBudget = MemoryBudget(),
        on_episode: Callable[[Episode], None] = lambda episode: None,
    ) -> Self:
        """Runs tower and prefix over the play, one episode at a time.

        Raises:
            ValueError: no episode is longer than the model's horizon, or it does not fit the model.
            OSError: no room for the spill file.
        """
        config = policy.model.config
        play.require(
            config.action_horizon, cameras=config.cameras, state_dim=config.state_dim, action_dim=config.action_dim
        )
        parts: list[Transition] = []
        store: PrefixCache | None = None
        for episode in play.episodes:
            if len(episode.pairs(config.action_horizon)):
                transitions = policy.transitions([episode], stats)
                start = sum(part.observation.batch_size for part in parts)
                for rows in torch.arange(transitions.observation.batch_size).split(PREFIX_BATCH):
                    with torch.no_grad():
                        prefix = policy.model.prefix(transitions.observation[rows])
                    if store is None:
                        store = _allocate(prefix, play.num_transitions(config.action_horizon), budget)
                    _copy(prefix, store, start + int(rows[0]))
                bare = replace(transitions.observation, images={}, image_features=None)
                parts.append(replace(transitions, observation=bare))
            on_episode(episode)
        assert store is not None  # `require` has found a transition
        return cls(concatenate(parts), store, policy.device)

    def __len__(self) -> int:
        return self.transitions.observation.batch_size

    def batch(self, rows: Int[Tensor, " B"]) -> tuple[Transition, PrefixCache]:
        """Those transitions and their prefixes, on the model's device."""
        rows_there = rows.to(self.transitions.observation.state.device)
        prefix = self.prefix[rows.to(self.prefix.mask.device)]
        return self.transitions[rows_there], prefix.map(lambda t: t.to(self.device))


def _allocate(example: PrefixCache, count: int, budget: MemoryBudget) -> PrefixCache:
    """Room for `count` prefixes like the first of `example`: in memory, or in a mapped file beyond the budget."""
    tensors = [t for kv in example.layers for t in (kv.k, kv.v)]
    needed = sum(count * t[0].numel() * t.element_size() for t in tensors)
    mask = torch.zeros(count, *example.mask.shape[1:], dtype=torch.bool)
    if needed <= budget.megabytes * 1e6:
        empty = [torch.empty(count, *t.shape[1:], dtype=t.dtype) for t in tensors]
    else:
        empty = _mapped([((count, *t.shape[1:]), t.dtype) for t in tensors], needed, budget.spill_dir)
    layers = tuple(KeyValues(k, v) for k, v in zip(empty[::2], empty[1::2], strict=True))
    return PrefixCache(layers, mask)


def _mapped(specs: list[tuple[tuple[int, ...], torch.dtype]], needed: int, folder: Path | None) -> list[Tensor]:
    """Tensors in files that have no name any more: the system frees them with the last tensor, even after a crash."""
    tensors = []
    try:
        for shape, dtype in specs:
            handle, name = tempfile.mkstemp(prefix="selfalign-prefix-", dir=folder)
            try:
                numel = torch.Size(shape).numel()
                reserve(handle, numel * dtype.itemsize)
                tensors.append(torch.from_file(name, shared=True, size=numel, dtype=dtype).view(shape))
            finally:
                os.close(handle)
                os.unlink(name)
    except OSError as error:
        raise OSError(
            error.errno,
            f"no room for {needed / 1e6:.0f} MB of prefixes in {folder or tempfile.gettempdir()} ({error.strerror}): "
            "free some, choose another spill_dir, raise memory_budget_mb, or align to less play",
        ) from error
    return tensors


def _copy(part: PrefixCache, store: PrefixCache, start: int) -> None:
    rows = slice(start, start + len(part.mask))
    store.mask[rows] = part.mask.to(store.mask.device)
    for source, target in zip(part.layers, store.layers, strict=True):
        target.k[rows] = source.k.to(target.k.device)
        target.v[rows] = source.v.to(target.v.device)
