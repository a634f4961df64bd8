"""The settings of rehearsal."""

from dataclasses import dataclass, field
from typing import Literal

from selfalign.configs import below, refuse
from selfalign.model.losses import LossWeights


@dataclass(frozen=True)
class ContrastiveConfig:
    """InfoNCE between the contexts of slots (`align.contrastive`)."""

    weight: float = 0.0
    """In the total; 0: no contrast, and slots are independent of one another."""
    temperature: float = 0.07
    negatives: int = 4
    """Perturbed bodies for each body and its recoloured twin."""

    def __post_init__(self) -> None:
        if self.weight < 0 or not self.temperature > 0 or self.negatives < 1:
            raise ValueError(f"contrast needs weight >= 0, temperature > 0 and at least 1 negative, got {self}")

    @property
    def group(self) -> int:
        """Slots that live and die together."""
        return 2 + self.negatives if self.weight else 1


@dataclass(frozen=True)
class RehearsalConfig:
    """Slots and batches of pretraining."""

    scheme: Literal["rehearsal", "per_body", "global"] = "rehearsal"
    """"rehearsal"; or, to compare with: one learned context per source embodiment, or one for all of them."""
    slots: int = 16
    play_per_slot: int = 8
    demonstrations_per_slot: int = 8
    max_age: int = 150
    """A slot lives for between 1/8 and all of this many steps."""
    learning_rate: float = 1e-2
    """Of the contexts; `align` uses the same."""
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    """Bound of each context's gradient norm; `align` uses the same."""
    decay_steps: float | None = None
    """How fast the contexts' rate falls (see `FastAdam`); `align` uses the same."""
    source_bodies: int | None = None
    """Slots draw from so many fixed source embodiments; None: each gets a new one, and the scheme "per_body" has 64."""
    detach: bool = True
    """The action loss reads the contexts and does not move them; False, to compare with: it moves them too."""
    widen_steps: int = 0
    """New embodiments start canonical and may be any only after this many steps. Reading W and finding the goal are
    hard to learn at once: a policy that already acts on canonical bodies has only W left to learn."""
    weights: LossWeights = field(default_factory=LossWeights)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("slots", "play_per_slot", "demonstrations_per_slot", "max_age", "source_bodies"), 1)
        wrong = below(self, **least)
        if self.scheme == "per_body" and self.fixed_bodies < self.slots:
            wrong.append(f"source_bodies={self.fixed_bodies} (at least slots={self.slots}: no two have the same)")
        refuse("rehearsal", wrong)

    @property
    def aligned(self) -> bool:
        """Whether the action expert learns to read contexts of single bodies that the alignment losses have made."""
        return self.scheme == "rehearsal" or (self.scheme == "per_body" and self.detach)

    @property
    def fixed_bodies(self) -> int:
        """Source embodiments of the scheme "per_body"."""
        return 64 if self.source_bodies is None else self.source_bodies
