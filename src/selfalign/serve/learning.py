"""`Learning`: what the server does for online alignment. Requests become steps; people look and give commands.

GET  /dashboard                                  a page for people
GET  /learn                                      the same as JSON
POST /learn/align?embodiment=NAME                align now
POST /learn/rollback?embodiment=NAME[&version=N] back to the version before, or to version N
"""

import asyncio
import http
import json
import math
import time
import uuid
from collections import deque
from collections.abc import Mapping
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from jaxtyping import Float
from websockets.datastructures import Headers
from websockets.http11 import Request as HttpRequest

from selfalign.data.episodes import IMAGE_PREFIX
from selfalign.data.transforms import resize_with_pad
from selfalign.model.device import existing_device
from selfalign.observations import STATE
from selfalign.online.aligner import Aligner
from selfalign.online.experience import Step, picture
from selfalign.online.learner import Learner
from selfalign.online.worker import WorkerSettings
from selfalign.policy import Policy
from selfalign.serve.access import is_loopback
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import Embodiment
from selfalign.serve.requests import EXECUTED, Request, RequestError

PAGE, STATUS, COMMANDS = "/dashboard", "/learn", ("/learn/align", "/learn/rollback")
RECENT = 200
"""Requests of each embodiment whose latency is shown."""
Reply = tuple[http.HTTPStatus, str, str]
"""Status, content type, body."""


class Learning:
    """The learner of a server, and what is shown of it.

    Args:
        learner: started and stopped with the server.
        image_size: pixels of the pictures that are kept, which are the model's.
    """

    def __init__(self, learner: Learner, image_size: int):
        self.learner, self.image_size = learner, image_size
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    @classmethod
    def build(cls, policy: Policy, config: ServeConfig) -> "Learning":
        """As `selfalign serve --learn DIR` does it.

        Raises:
            ValueError: more actions executed of a chunk than it has; the folder is another server's; or there is no
                such device.
            OSError: the folder cannot be written.
        """
        if config.learn is None:
            raise ValueError("there is no folder to learn in: give --learn")
        horizon, assumed, plan = policy.model.config.action_horizon, config.learning.executed, config.learning.aligner
        if assumed is not None and assumed > horizon:
            raise ValueError(f"--executed {assumed} is more than the {horizon} actions of a chunk")
        settings = WorkerSettings(
            config.checkpoint,
            policy.fingerprint(),
            str(existing_device(plan.aligner_device or config.device)),
            config.tokenizer,
            config.robot,
            plan.aligner_threads,
            plan.aligner_nice,
            plan.aligner_gpu_share,
            plan.aligner_memory_mb,
        )
        aligner = Aligner(settings, plan.aligner_timeout)
        learner = Learner(config.learn, config.learning, horizon, policy.fingerprint(), aligner)
        return cls(learner, policy.model.config.image_size)

    def trail(self) -> "Trail":
        """For a new connection."""
        return Trail(self)

    def seen(self, name: str, seconds: float) -> None:
        """Counts an answer."""
        self._seen.setdefault(name, deque(maxlen=RECENT)).append((time.time(), seconds))

    def status(self, connections: int) -> dict[str, Any]:
        """JSON values: what the page shows."""
        bodies = self.learner.status()
        for name, body in bodies.items():
            answers = list(self._seen.get(name, ()))
            latency = [1000 * seconds for _, seconds in answers]
            body["last_seen"] = answers[-1][0] if answers else None
            body["latency_ms"] = (
                {f"p{q}": round(float(np.percentile(latency, q)), 2) for q in (50, 95)} if latency else None
            )
        return {"time": time.time(), "connections": connections, "embodiments": bodies}

    # ---- HTTP ------------------------------------------------------------------------------------------------------

    @staticmethod
    def handles(path: str) -> bool:
        return path in (STATUS, *COMMANDS)

    async def answer(self, request: HttpRequest, connections: int) -> Reply:
        """Status or a command; who asks has been checked before."""
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        wanted = "GET" if parts.path == STATUS else "POST"
        if request.method != wanted:
            return _told(http.HTTPStatus.METHOD_NOT_ALLOWED, f"send {parts.path} as {wanted}")
        if wanted == "GET":
            status = await asyncio.to_thread(self.status, connections)
            return http.HTTPStatus.OK, "application/json", json.dumps(_plain(status), allow_nan=False)
        try:
            result = await asyncio.to_thread(self._command, parts.path, query)
        except (LookupError, ValueError) as error:
            return _told(http.HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return _told(http.HTTPStatus.INSUFFICIENT_STORAGE, f"nothing was changed: {error}")
        return http.HTTPStatus.OK, "application/json", json.dumps(result)

    def _command(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        name, version = query.get("embodiment", ""), query.get("version")
        if version is not None and not version.isdecimal():
            raise ValueError(f"a version is a number, got {version[:40]!r}")
        if path == COMMANDS[0]:
            self.learner.align_now(name)
            return {"embodiment": name, "aligning": True}
        number = self.learner.rollback(name, None if version is None else int(version))
        return {"embodiment": name, "version": number}


def page() -> Reply:
    """The dashboard; what it shows, it asks for with the operator's key."""
    text = resources.files("selfalign.serve").joinpath("dashboard.html").read_text(encoding="utf-8")
    return http.HTTPStatus.OK, "text/html; charset=utf-8", text


def _plain(value: Any) -> Any:
    """With null for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(status: http.HTTPStatus, text: str) -> Reply:
    return status, "text/plain; charset=utf-8", text + "\n"


def forged(headers: Headers, *, keyed: bool) -> bool:
    """Whether a page from elsewhere may be behind a request: a browser sends where the page is from as `Origin`, and a
    name that was made to point at this machine as `Host`. A key, which no such page has, settles the second."""
    origins, host = headers.get_all("Origin"), headers.get("Host") or ""
    if any(urlsplit(origin).netloc != host for origin in origins):
        return True
    return not keyed and not is_loopback(urlsplit(f"//{host}").hostname or "")


# ---- from requests to steps ----------------------------------------------------------------------------------------


class Trail:
    """The motion of one connection's robot, as its requests tell it."""

    def __init__(self, learning: Learning):
        self._learning = learning
        self._begin()

    def _begin(self) -> None:
        self._chain, self._index = uuid.uuid4().hex[:12], 0
        self._name: str | None = None
        self._chunk: Float[np.ndarray, "H A"] | None = None

    def check(self, request: Request, embodiment: Embodiment) -> None:
        """Raises `RequestError` where what was executed cannot be."""
        done = request.executed
        if isinstance(done, np.ndarray) and done.shape[1] != embodiment.stats.action_dim:
            raise RequestError(
                f"{EXECUTED} has {done.shape[1]} dimensions, an action of this embodiment {embodiment.stats.action_dim}"
            )
        if isinstance(done, int) and self._chunk is not None and done > len(self._chunk):
            raise RequestError(f"{EXECUTED}: {done} actions, but the last chunk had {len(self._chunk)}")

    def reset(self) -> None:
        """A new episode: what comes does not follow from what was."""
        self._begin()

    def add(self, request: Request, embodiment: Embodiment, actions: Float[np.ndarray, "H A"], seconds: float) -> None:
        """Takes an answered request. Returns at once."""
        self._learning.seen(embodiment.name, seconds)
        assert request.observation is not None
        done = self._done(request.executed, embodiment)
        if done is None:
            self._begin()
            done = np.zeros((0, embodiment.stats.action_dim), np.float32)
        raw, chain, index, now = request.observation, self._chain, self._index, time.time()
        side = self._learning.image_size

        def make() -> Step:
            images = {n.removeprefix(IMAGE_PREFIX): x for n, x in raw.items() if n.startswith(IMAGE_PREFIX)}
            pictures = {camera: picture(resize_with_pad(x[None], side, side)[0]) for camera, x in images.items()}
            return Step(chain, index, now, pictures, raw[STATE].astype(np.float32), done)

        self._learning.learner.record(embodiment.name, make)
        self._name, self._chunk, self._index = embodiment.name, actions, self._index + 1

    def _done(self, told: int | np.ndarray | None, embodiment: Embodiment) -> Float[np.ndarray, "n A"] | None:
        """The actions between the request before and this one; None: nobody knows, or there was none before."""
        told = self._learning.learner.config.executed if told is None else told
        if told is None or self._chunk is None or self._name != embodiment.name:
            return None
        return np.asarray(told, np.float32) if isinstance(told, np.ndarray) else self._chunk[:told]
