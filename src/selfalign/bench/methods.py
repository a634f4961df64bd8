"""Methods by name: what is made of a body's play or demonstrations, and what it costs.

Aligning and its two controls are here; whatever else there is comes from `selfalign.baselines`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from selfalign.align.offline import AlignConfig, align
from selfalign.baselines import fit as fit_baseline
from selfalign.baselines.choices import chosen
from selfalign.baselines.methods import METHODS, configured
from selfalign.bench.subject import null_update
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import LossWeights
from selfalign.policy import Policy

OWN = ("frozen", "selfalign", "random")
TOLD = ("best_step", "stopped")
"""Of a baseline's history."""


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
    complete(name, settings or {}, play is not None, bool(demonstrations))
    if name not in OWN:
        adapted = fit_baseline(name, policy, play, demonstrations, seed=seed, config=settings or {})
        details = {"config": adapted.config, **{key: adapted.history[key] for key in TOLD if key in adapted.history}}
        return Fitted(adapted.policy, adapted.context, adapted.bytes_stored, adapted.seconds, details)
    assert play is not None  # as was checked
    if name == "random":
        return random(policy, play, seed, aligned or fit("selfalign", policy, play, (), seed, settings))
    began = time.perf_counter()
    if name == "selfalign":
        context, details = selfalign(policy, play, settings or {})
        return Fitted(policy, context, context.num_bytes, time.perf_counter() - began, details)
    return Fitted(policy, frozen(policy, play), 0, time.perf_counter() - began)


def complete(name: str, settings: Mapping[str, Any], play: bool, demonstrations: bool) -> dict[str, Any]:
    """All settings with which a baseline will run, as JSON values; none of aligning and its controls, whose settings
    are those that are given and the checkpoint's.

    Args:
        play: whether it will be given some.
        demonstrations: likewise.

    Raises:
        ValueError: no such method or setting, or not what the method learns from.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"the settings of {name} are an object, got {settings!r}")
    if name not in (*OWN, *METHODS):
        raise ValueError(f"no method {name!r}; there are: {', '.join(dict.fromkeys((*OWN, *METHODS)))}")
    from_demonstrations = name not in OWN and METHODS[name].uses_demonstrations
    if from_demonstrations != demonstrations or not (play or from_demonstrations):
        wanted = "demonstrations of the body" if from_demonstrations else "play of the body, and from nothing else"
        raise ValueError(f"{name} learns from {wanted}")
    if name not in OWN:
        return json.loads(json.dumps(asdict(configured(METHODS[name], settings, chosen(name)))))
    if name == "frozen" and settings:
        raise ValueError(f"frozen has no settings, got {dict(settings)}")
    _config(settings)
    return {}


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
