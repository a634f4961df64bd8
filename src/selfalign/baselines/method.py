"""What a method is given, what it gives back, and how it says which of its settings may be tuned."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from selfalign.configs import refuse
from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy


@dataclass(frozen=True, eq=False)
class Adapted:
    """A policy for one body: `adapted.policy.act(observation, adapted.context)`."""

    method: str
    config: Mapping[str, Any]
    """Of the method, as JSON values."""
    policy: Policy
    """The policy that was given, or a copy of it in which something moved."""
    context: EmbodimentContext
    """Fast weights, and the body's normalisation statistics."""
    history: Mapping[str, Any]
    """What happened in the fitting, as JSON values."""
    bytes_stored: int
    """Numbers that a robot keeps for this body beside the policy, in bytes; its statistics are not counted."""
    seconds: float
    """Wall time of the fitting."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a method may use. Nothing of it is changed."""

    policy: Policy
    play: Play | None
    """Of the body; None where a method is given demonstrations only."""
    demonstrations: tuple[Episode, ...]
    seed: int
    progress: bool
    embodiment: Mapping[str, Any] = field(default_factory=dict)
    """Description of the body, where there is no play that has it."""

    @cached_property
    def stats(self) -> NormStats:
        """The body's statistics: of its play where there is some, else of its demonstrations."""
        return self.policy.play_stats(
            Play.from_episodes(self.demonstrations, self.embodiment, "demonstrations")
            if self.play is None
            else self.play
        )

    @property
    def body(self) -> str:
        """Its name."""
        if self.play is None:
            return str(self.embodiment.get("name", ""))
        return str(self.play.embodiment.get("name", self.play.name))

    def own_play(self) -> Play:
        """The play, with the cameras under the model's names, checked to fit the model."""
        assert self.play is not None  # `fit` has seen to it
        play, model = self.policy.repack_play(self.play), self.policy.model.config
        play.require(
            model.action_horizon, cameras=model.cameras, state_dim=model.state_dim, action_dim=model.action_dim
        )
        return play

    def copied_policy(self) -> Policy:
        """A policy with a model of its own, in eval mode and without trainable parameters."""
        model = copy.deepcopy(self.policy.model).eval().requires_grad_(False)
        return replace(self.policy, model=model)

    def context_of(self, policy: Policy, like: EmbodimentContext | None = None) -> EmbodimentContext:
        """A context of this body for a policy; the policy's prior where there are no fast weights to take."""
        weights = policy.model.prior() if like is None else like
        return weights.clone().with_info(
            embodiment=self.body,
            fingerprint=policy.fingerprint(),
            norm_stats=self.stats.to_dict(),
            robot=policy.converted_by,
            history=None,
            verdict=None,
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method found; `fit` makes an `Adapted` of it."""

    policy: Policy
    context: EmbodimentContext
    history: Mapping[str, Any]
    bytes_stored: int


class Draw(Protocol):
    """Draws the value of one setting."""

    def __call__(self, rng: np.random.Generator, /) -> Any: ...


@dataclass(frozen=True)
class LogUniform:
    """A number between two others, uniform in its logarithm; rounded to two digits, so that it can be typed."""

    low: float
    high: float

    def __call__(self, rng: np.random.Generator, /) -> float:
        return float(f"{np.exp(rng.uniform(np.log(self.low), np.log(self.high))):.1e}")


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __call__(self, rng: np.random.Generator, /) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Method:
    """One way to bring a policy to a new body."""

    config: type[Any]
    """A frozen dataclass of JSON values. Its defaults are where tuning starts (`baselines/choices.py`)."""
    adapt: Callable[[Given, Any], Outcome]
    search: Mapping[str, Draw]
    """The settings that are tuned, and what they are drawn from."""
    uses_demonstrations: bool = False


def check_positive(config: Any, names: Sequence[str], *, or_zero: Sequence[str] = ()) -> None:
    """Raises `ValueError` naming the fields of a config that are not positive, or negative."""
    wrong = [f"{name}={getattr(config, name)} (above 0)" for name in names if not getattr(config, name) > 0]
    wrong += [f"{name}={getattr(config, name)} (at least 0)" for name in or_zero if not getattr(config, name) >= 0]
    refuse(type(config).__name__, wrong)
