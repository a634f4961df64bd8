"""Requests from robots: every field is checked before anything reaches the model, and the error says what to send.

A request is a flat map: an observation in LeRobot's names, and what the server itself reads.

    observation.images.<camera>   uint8 [H, W, 3]
    observation.state             float [S], in the robot's units
    task                          str                                     openpi's `prompt` is the same
    embodiment                    str, optional: whose context to act with
    reset                         True, optional: a new episode begins; alone, it is only acknowledged
    seed                          int, optional, with reset: the noise of the episode repeats
    executed                      int n, or float [n, A], optional, where the server learns: the actions carried out
                                  since the request before, as the first n of its chunk or one by one

Names may be written with / for ., as openpi's robots do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfalign.data.episodes import IMAGE_PREFIX
from selfalign.data.normalize import NormStats
from selfalign.observations import STATE, TASK
from selfalign.serve.config import Limits

EMBODIMENT, RESET, SEED, EXECUTED = "embodiment", "reset", "seed", "executed"
MAX_EXECUTED = 1000
PROMPT = "prompt"
OBSERVATION = f"{IMAGE_PREFIX}<camera> (uint8 [H, W, 3]), {STATE} (float [S]) and {TASK} (text)"


class RequestError(ValueError):
    """The client's mistake: its text is sent to the client."""


@dataclass(frozen=True, eq=False)
class Request:
    """One request whose every field has a type and a size that can be relied on."""

    observation: Mapping[str, Any] | None
    """In the names that `Policy` takes; None: only a reset."""
    embodiment: str | None = None
    reset: bool = False
    seed: int | None = None
    executed: int | np.ndarray | None = None
    """Actions carried out since the request before: how many of its chunk, or float [n, A]."""


@dataclass(frozen=True)
class RequestReader:
    """Turns decoded messages into requests.

    Args:
        limits: sizes that are accepted.
        rename: names that robots send, and what they mean.
        learns: whether robots may say what they executed.
    """

    limits: Limits
    rename: Mapping[str, str]
    learns: bool = False

    def read(self, message: Any) -> Request:
        """Raises `RequestError` unless every field is known, complete and well-formed."""
        fields = self._fields(message)
        embodiment, reset, seed = fields.pop(EMBODIMENT, None), fields.pop(RESET, False), _plain(fields.pop(SEED, None))
        if embodiment is not None and not (isinstance(embodiment, str) and 0 < len(embodiment) <= 200):
            raise RequestError(f"{EMBODIMENT} must be a name of 1 to 200 characters, got {_told(embodiment)}")
        if not isinstance(reset, bool | np.bool_):
            raise RequestError(f"{RESET} must be True or False, got {_told(reset)}")
        if seed is not None and not (reset and type(seed) is int and 0 <= seed < 2**63):
            raise RequestError(f"{SEED} must be an integer from 0 to 2**63 - 1, sent with {RESET}; got {_told(seed)}")
        executed = _executed(_plain(fields.pop(EXECUTED, None))) if self.learns else None
        if not fields and reset:
            return Request(None, embodiment, True, seed)
        return Request(self._observation(fields), embodiment, bool(reset), seed, executed)

    def _fields(self, message: Any) -> dict[str, Any]:
        """The message under the names that are used here."""
        if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
            raise RequestError(f"a request is a map with text keys, {OBSERVATION}; got {_told(message)}")
        fields: dict[str, Any] = {}
        for key, value in message.items():
            name = self.rename.get(key, key.replace("/", "."))
            name = TASK if name == PROMPT else name
            if name in fields:
                raise RequestError(f"{key[:100]!r} means {name[:100]!r}, which the request has already; send one")
            fields[name] = value
        return fields

    def _observation(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        images = {name: value for name, value in fields.items() if name.startswith(IMAGE_PREFIX)}
        unknown = sorted(fields.keys() - images.keys() - {STATE, TASK})
        missing = [name for name in (STATE, TASK) if name not in fields]
        if unknown or missing:
            found = f"has unknown {_listed(unknown)}" if unknown else f"has no {_listed(missing)}"
            raise RequestError(
                f"the request {found}; send {OBSERVATION}, and {EMBODIMENT}, {RESET} or {SEED} if wanted"
            )
        for name, image in images.items():
            self._check_image(name, image)
        self._check_state(fields[STATE])
        self._check_task(fields[TASK])
        return fields

    def _check_image(self, name: str, image: Any) -> None:
        right = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
        side = self.limits.image_side
        if not right or not all(0 < n <= side for n in image.shape[:2]):
            raise RequestError(
                f"{name[:100]} must be uint8 [H, W, 3] of at most {side} pixels a side, got {_told(image)}"
            )

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.ndim != 1 or not state.size:
            raise RequestError(f"{STATE} must be a float array [S] in the robot's units, got {_told(state)}")
        if not np.isfinite(state).all():
            bad = int(np.flatnonzero(~np.isfinite(state))[0])
            raise RequestError(f"{STATE}[{bad}] is {state[bad]}; check the robot's sensors")

    def _check_task(self, task: Any) -> None:
        longest = self.limits.prompt_chars
        words = " ".join(task.split()) if isinstance(task, str) else ""  # tokenizers read any white space as one
        if not words or len(task) > longest or not words.isprintable():
            raise RequestError(
                f"{TASK} must say what to do in 1 to {longest} printable characters, for example 'reach the red cube'; "
                f"got {_told(task)}"
            )


def _plain(value: Any) -> Any:
    """NumPy's integers as Python's."""
    return int(value) if isinstance(value, np.integer) else value


def _executed(value: Any) -> int | np.ndarray | None:
    if isinstance(value, np.ndarray):
        right = value.dtype.kind == "f" and value.ndim == 2 and 0 < len(value) <= MAX_EXECUTED
        if right and np.isfinite(value).all():
            return value
    elif value is None or (type(value) is int and 0 < value <= MAX_EXECUTED):
        return value
    raise RequestError(
        f"{EXECUTED} must be the number of actions of the last chunk that were carried out, or those actions as floats "
        f"[n, A] without NaN, n from 1 to {MAX_EXECUTED}; got {_told(value)}"
    )


def check_range(state: np.ndarray, stats: NormStats, deviation: float) -> None:
    """Raises `RequestError` where a state is further from the robot's own play than its units can explain."""
    if len(state) != stats.state_dim:
        raise RequestError(f"{STATE} has {len(state)} dimensions, this embodiment has {stats.state_dim}")
    distance = np.abs(stats.normalize_state(state.astype(np.float64)))
    worst = int(distance.argmax())
    if distance[worst] > deviation:
        mean, spread = stats.state.mean[worst], stats.state.std[worst]
        raise RequestError(
            f"{STATE}[{worst}] = {state[worst]:.6g} is {distance[worst]:.3g} spreads from the middle of what the "
            f"robot's play showed ({mean:.4g} ± {spread:.2g}); send the units of the play (radians or degrees? "
            "metres?), or align to play that goes there"
        )


def _told(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return (
        f"{type(value).__name__} {str(value)[:60]!r}" if isinstance(value, str | int | float) else type(value).__name__
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:100]) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
