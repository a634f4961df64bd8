"""`Units`: bodies whose numbers come in other units than the spread of their play."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float

_COMMON, _OWN = 2.0, 1.5
"""Largest scale that all numbers of a field share, and largest that each has beside it, at width 1."""


@dataclass(frozen=True)
class Units:
    """Normalised numbers x become (x - shift) / scale, each with a shift and a scale of its own.

    A new body is normalised by what it plays, be it slow or quick, and in pretraining that is always play of one kind.
    Whether a policy that is shown other units can find them in the context, the ablation's cell `units` asks.

    Args:
        seed: draws shifts and scales.
        width: at 1, scales lie between a third and three, and shifts within one spread; at 0 nothing changes.
    """

    seed: int
    width: float = 1.0

    def applied(self, field: Literal["state", "action"], values: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """A field's normalised numbers in these units."""
        rng = np.random.default_rng([self.seed, field == "action"])
        dims = values.shape[-1]
        common, own, shift = rng.uniform(-1, 1), rng.uniform(-1, 1, size=dims), rng.uniform(-1, 1, size=dims)
        scale = _COMMON ** (self.width * common) * _OWN ** (self.width * own)
        return (values - self.width * shift) / scale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(int(data["seed"]), float(data["width"]))
