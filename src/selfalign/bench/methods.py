"""Methods by name: what is made of a body's play or demonstrations, and what it costs.

Aligning and its two controls are here; whatever else there is comes from `selfalign.baselines`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfalign.align.offline import AlignConfig, align
from selfalign.baselines import fit as fit_baseline
from selfalign.bench.subject import null_update
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import LossWeights
from selfalign.policy import Policy

OWN = ("frozen", "selfalign", "random")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A policy and a context for one body."""

    policy: Policy
    context: EmbodimentContext
    bytes_stored: int
    """What is kept for this body beside the policy; its statistics are not counted."""
    seconds: float
    """Wall time of the fitting."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What happened, as JSON values."""


def fit(
    name: str,
    policy: Policy,
    play: Play | None,
    demonstrations: Sequence[Episode],
    seed: int,
    settings: Mapping[str, Any] | None = None,
    *,
    aligned: Fitted | None = None,
) -> Fitted:
    """Runs a method. The policy that is given stays as it is.

    Args:
        name: `frozen`, `selfalign`, `random`, or a baseline.
        play: of the body; None for a method that learns from demonstrations alone.
        demonstrations: of the body; empty for a method that uses none.
        seed: of what the method draws.
        settings: of the method, where they are not its defaults.
        aligned: what `selfalign` made of the same play with the same settings, where that is known: `random` needs it.

    Raises:
        ValueError: no such method or setting, or not what the method learns from.
    """
    if name not in OWN:
        adapted = fit_baseline(name, policy, play, demonstrations, seed=seed, config=settings or {})
        return Fitted(adapted.policy, adapted.context, adapted.bytes_stored, adapted.seconds)
    if play is None or demonstrations:
        raise ValueError(f"{name} learns from play of the body, and from nothing else")
    if name == "random":
        return random(policy, play, seed, aligned or fit("selfalign", policy, play, (), seed, settings))
    began = time.perf_counter()
    if name == "selfalign":
        context, details = selfalign(policy, play, settings or {})
        return Fitted(policy, context, context.num_bytes, time.perf_counter() - began, details)
    if settings:
        raise ValueError(f"frozen has no settings, got {dict(settings)}")
    return Fitted(policy, frozen(policy, play), 0, time.perf_counter() - began)


def frozen(policy: Policy, play: Play) -> EmbodimentContext:
    """The prior W0, in the units of the body: success before any fitting."""
    stats = policy.play_stats(policy.repack_play(play)).to_dict()
    name = str(play.embodiment.get("name", play.name))
    prior = policy.model.prior().clone()
    return prior.with_info(embodiment=name, fingerprint=policy.fingerprint(), norm_stats=stats)


def selfalign(policy: Policy, play: Play, settings: Mapping[str, Any]) -> tuple[EmbodimentContext, dict[str, Any]]:
    """What `selfalign align` returns; settings are those of `AlignConfig`."""
    result = align(policy, play, config=_config(settings), progress=False)
    details = {
        "verdict": result.verdict.to_dict(),
        "steps": result.history.steps,
        "best_step": result.history.best_step,
        "update_norm": result.fitted.distance(policy.model.prior()),
    }
    return result.context, details


def random(policy: Policy, play: Play, seed: int, aligned: Fitted) -> Fitted:
    """The null: W0 moved as far as aligning has moved it, in a random direction. It takes the time of both."""
    began = time.perf_counter()
    context = null_update(policy, frozen(policy, play), aligned.details["update_norm"], seed)
    return Fitted(policy, context, context.num_bytes, aligned.seconds + time.perf_counter() - began)


def _config(settings: Mapping[str, Any]) -> AlignConfig:
    told = dict(settings)
    if "weights" in told:
        told["weights"] = LossWeights(**told["weights"])
    try:
        return AlignConfig(**told)
    except TypeError as error:
        raise ValueError(f"selfalign takes the settings of AlignConfig: {error}") from error
