"""What a raw observation says: state and words, each checked, and an error that names the key."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from selfalign.data.normalize import NormStats

STATE, TASK = "observation.state", "task"


def read_state(raw: Mapping[str, Any], stats: Sequence[NormStats]) -> Float[np.ndarray, "*B S"]:
    """float32 [S] or [B, S]; the one key that says whether the observation is a batch.

    Raises:
        ValueError: no statistics, no state, or one of another type or size than theirs, or with a NaN.
    """
    if not stats:
        raise ValueError(
            "acting needs the robot's normalisation statistics: give a context that was aligned to its play, or "
            "stats=play.stats()"
        )
    if STATE not in raw:
        raise ValueError(f"the observation has no {STATE!r}; it has {', '.join(sorted(map(str, raw))) or 'no key'}")
    state = np.asarray(raw[STATE])
    if not np.issubdtype(state.dtype, np.floating) or state.ndim not in (1, 2) or 0 in state.shape:
        raise ValueError(f"{STATE} must be float [S] or [B, S], got {state.dtype} {list(state.shape)}")
    wrong = [s.state_dim for s in stats if s.state_dim != state.shape[-1]]
    if wrong:
        padded = ". Cut padded ones with NormStats.read_openpi(path, mode, state_dim=..., action_dim=...)"
        more = padded if wrong[0] > state.shape[-1] else ""
        raise ValueError(f"{STATE} has {state.shape[-1]} dimensions, the robot's statistics have {wrong[0]}{more}")
    if not np.isfinite(state).all():
        bad = np.argwhere(~np.isfinite(state))[0].tolist()
        raise ValueError(f"{STATE} is NaN or infinite at index {bad}; check the robot's sensors")
    return state.astype(np.float32)


def read_tasks(raw: Mapping[str, Any], size: int) -> list[str]:
    """The instruction of each of `size` observations.

    Raises:
        ValueError: there is none, or not one for each.
    """
    if TASK not in raw:
        raise ValueError(f"the observation has no {TASK!r}: say what to do, for example 'reach the red cube'")
    told = raw[TASK]
    tasks = [told] * size if isinstance(told, str) else list(told) if np.ndim(told) == 1 else []
    if len(tasks) != size or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"{TASK} must be one string, or a string for each of {size} observations; got {told!r}")
    return [str(task) for task in tasks]
