"""A moving average of the weights: what is exported and validated where one is kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """`average = decay * average + (1 - decay) * weight` after every step, by name of the weight."""

    def __init__(self, decay: float, weights: Mapping[str, Tensor]):
        if not 0 < decay < 1:
            raise ValueError(f"the decay of a moving average lies between 0 and 1, got {decay}")
        self._weights = {name: w.detach() for name, w in weights.items()}
        self.values = {name: w.clone() for name, w in self._weights.items()}
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take in the weights as they are now."""
        self._update(list(self.values.values()), list(self._weights.values()), 0)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Averages as `values` has held them."""
        for name, own in self.values.items():
            own.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages as its weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(kept)
