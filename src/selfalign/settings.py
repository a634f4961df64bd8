"""What a checkpoint says of how it is to be aligned."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfalign.model.losses import LossWeights


@dataclass(frozen=True)
class AlignSettings:
    """How a checkpoint wants to be aligned: what its contexts were rehearsed with in pretraining."""

    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    batch_size: int = 64
    steps: int = 100
    clip_norm: float | None = 1.0
    """Bound of the gradient's norm; None: no clipping."""
    decay_steps: float | None = None
    """How fast the rate falls (see `FastAdam`); None: not at all."""
    weights: LossWeights = field(default_factory=LossWeights)
    rehearsed: bool = True
    features: str | None = None
    """Name of the stored features by which next observations were told in pretraining; None: the tower's own."""

    def __post_init__(self) -> None:
        positive = {name: getattr(self, name) for name in ("learning_rate", "batch_size", "steps")}
        wrong = [f"{name}={value}" for name, value in positive.items() if not value > 0]
        if wrong:
            raise ValueError(f"alignment settings must be positive: {', '.join(wrong)}")

    @classmethod
    def unrehearsed(cls) -> "AlignSettings":
        """For a model that was not rehearsed: small steps."""
        return cls(learning_rate=1e-4, betas=(0.9, 0.999), rehearsed=False)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AlignSettings":
        """The inverse of `to_dict`; every key but `features`, which is new, must be there and no other."""
        names = {f.name for f in dataclasses.fields(cls)}
        if data.keys() | {"features"} != names:
            raise ValueError(
                f"alignment settings lack {sorted(names - data.keys())} and have unknown {sorted(data.keys() - names)}"
            )
        return cls(**{**data, "betas": tuple(data["betas"]), "weights": LossWeights(**data["weights"])})
