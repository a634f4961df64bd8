"""A cell's method by name: one of `selfalign.baselines`, or a control, which is made of what aligning gives."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfalign.baselines import METHODS, Adapted, fit
from selfalign.baselines.choices import chosen
from selfalign.baselines.methods import configured, told
from selfalign.bench.subject import RANDOM, null_update
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.policy import Policy

STALE = "stale"
"""What was aligned to the body before it changed (`before_change`)."""
CONTROLS = (RANDOM, STALE)


def run_method(
    name: str,
    policy: Policy,
    play: Play | None,
    demonstrations: Sequence[Episode],
    seed: int,
    settings: Mapping[str, Any] | None = None,
    *,
    aligned: Adapted | None = None,
    embodiment: Mapping[str, Any] | None = None,
) -> Adapted:
    """Runs a method. The policy that is given stays as it is.

    Args:
        name: `random`, or one of `METHODS` (`stale` is made of another body: see `Workshop`).
        play: of the body; None for a method that learns from demonstrations alone.
        demonstrations: of the body; empty for a method that uses none.
        seed: of what the method draws.
        settings: of the method, where they are not its defaults; those of controls are `selfalign`'s.
        aligned: what `selfalign` made of the same play with the same settings, where that is known: `random` needs it.
        embodiment: description of the body, which a method needs that is given no play.

    Raises:
        ValueError: no such method or setting, or not what the method learns from.
    """
    complete(name, settings or {}, play is not None, bool(demonstrations))
    if name != RANDOM:
        given = play, demonstrations
        return fit(name, policy, *given, seed=seed, config=settings or {}, embodiment=embodiment or {})
    assert play is not None  # as was checked
    return random(policy, play, seed, aligned or fit("selfalign", policy, play, seed=seed, config=settings))


def random(policy: Policy, play: Play, seed: int, aligned: Adapted) -> Adapted:
    """The null: W0 moved as far as aligning has moved it, in a random direction. It takes the time of both."""
    began = time.perf_counter()
    start = fit("frozen", policy, play).context
    context = null_update(policy, start, aligned.history["update_norm"], seed)
    seconds = aligned.seconds + time.perf_counter() - began
    return replace(aligned, method=RANDOM, context=context, history={}, bytes_stored=context.num_bytes, seconds=seconds)


def complete(name: str, settings: Mapping[str, Any], play: bool, demonstrations: bool) -> dict[str, Any]:
    """All settings with which a method will run, as JSON values.

    Args:
        play: whether it will be given some.
        demonstrations: likewise.

    Raises:
        ValueError: no such method or setting, or not what the method learns from.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"the settings of {name} are an object, got {settings!r}")
    if name not in (*METHODS, *CONTROLS):
        raise ValueError(f"no method {name!r}; there are: {', '.join((*METHODS, *CONTROLS))}")
    name = "selfalign" if name in CONTROLS else name
    method = METHODS[name]
    if method.uses_demonstrations != demonstrations or not (play or demonstrations):
        wanted = "demonstrations of the body" if method.uses_demonstrations else "play of the body, and nothing else"
        raise ValueError(f"{name} learns from {wanted}")
    return told(configured(method, settings, chosen(name)))
