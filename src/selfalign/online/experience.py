"""`Step`: what a robot saw and did, as one record; and records as play that a context can be fitted to.

A robot looks when it asks the server, and carries out some actions before it looks again. A step holds one look and the
actions that led to it from the look before. Steps of one *chain* follow each other without a gap: the robot was not
reset, and every action in between is known. In a chain, two looks that are H actions apart are a transition
(o_t, a_{t:t+H}, o_{t+H}); other looks are not, since nobody knows what the robot saw after exactly H actions.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from selfalign.data.episodes import SparseEpisode
from selfalign.data.play import Play
from selfalign.data.png import decode_frame, encode_frames

LOOKS = 32
"""Looks of an episode: a longer chain becomes several, so that some can be held out."""
_IMAGE = "image."


@dataclass(frozen=True, eq=False)
class Step:
    """One look of a robot, and what it did since the look before."""

    chain: str
    """Steps of one chain follow each other without a gap."""
    index: int
    """Place in the chain; 0 is its first look."""
    time: float
    """Seconds since 1970."""
    pictures: Mapping[str, bytes]
    """Per camera, PNG."""
    state: Float[np.ndarray, " S"]
    """In the robot's units."""
    executed: Float[np.ndarray, "n A"]
    """Actions since the look before, in the robot's units; none for the first look."""

    def pack(self) -> bytes:
        """As bytes; no code is in them."""
        about = json.dumps({"chain": self.chain, "index": self.index, "time": self.time}).encode()
        tensors = {"about": _bytes(about), "state": self.state, "executed": self.executed}
        return save(tensors | {_IMAGE + camera: _bytes(png) for camera, png in self.pictures.items()})

    @classmethod
    def unpack(cls, data: bytes) -> "Step":
        """The inverse of `pack`.

        Raises:
            ValueError: other bytes.
        """
        try:
            tensors = load(data)
            about = json.loads(tensors["about"].tobytes())
            pictures = {n.removeprefix(_IMAGE): x.tobytes() for n, x in tensors.items() if n.startswith(_IMAGE)}
            return cls(about["chain"], about["index"], about["time"], pictures, tensors["state"], tensors["executed"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a record of {len(data)} bytes is no step of a robot: {error!r}") from error

    def follows(self, other: "Step") -> bool:
        """Whether this is the next step of the same chain, in the same cameras and dimensions."""
        return self.place == other.next_place

    @property
    def place(self) -> tuple[object, ...]:
        """Where it stands: its chain, its place there, cameras and dimensions."""
        return self.chain, self.index, self.kind

    @property
    def next_place(self) -> tuple[object, ...]:
        """`place` of the step that follows it."""
        return self.chain, self.index + 1, self.kind

    @property
    def kind(self) -> tuple[object, ...]:
        """Cameras and dimensions."""
        return (*sorted(self.pictures), len(self.state), self.executed.shape[1])


def picture(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An image as a step keeps it, without loss."""
    return encode_frames(image[None])[0]


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


class TransitionCounter:
    """How many transitions over `horizon` actions steps complete, as they come; chains may be interleaved."""

    def __init__(self, horizon: int):
        self._horizon = horizon
        # Place of the next step, the last one's moment, moments a horizon back; no steps, which hold their pictures.
        self._chains: dict[str, tuple[object, int, deque[int]]] = {}

    def add(self, step: Step) -> int:
        """1 if this look is exactly a horizon after an earlier one of its chain, else 0."""
        expected, moment, looks = self._chains.pop(step.chain, (None, 0, deque()))
        if step.place != expected:
            moment, looks = 0, deque()
        else:
            moment += len(step.executed)
        while looks and looks[0] < moment - self._horizon:
            looks.popleft()
        found = bool(looks) and looks[0] == moment - self._horizon
        looks.append(moment)
        self._chains[step.chain] = (step.next_place, moment, looks)
        if len(self._chains) > 1000:  # the one that has been silent for longest
            self._chains.pop(next(iter(self._chains)))
        return int(found)


def to_play(steps: Iterable[Step], horizon: int, name: str, *, newest: int | None = None) -> Play:
    """Steps as play: every chain is an episode or several, without those that have no transition.

    Args:
        steps: oldest first; chains may be interleaved. Those with other cameras or dimensions than the newest one are
            left out.
        horizon: H of the model.
        name: of the body.
        newest: so many transitions are enough: older episodes are left out, whole; None: all.

    Raises:
        ValueError: there is no transition in the steps.
    """
    runs = _runs(steps)
    kind = max(runs, key=lambda run: run[-1].time)[-1].kind if runs else None
    episodes: list[SparseEpisode] = []
    count = 0
    for run in reversed([run for run in runs if run[0].kind == kind]):
        if newest is not None and count >= newest:
            break
        bare = _episode(run, pictures=False)
        if found := len(bare.pairs(horizon)):
            episodes.append(_episode(run))
            count += found
    if not episodes:
        raise ValueError(
            f"{name} has no transition: nowhere are two looks exactly {horizon} actions apart; look after a number of "
            f"actions that divides {horizon}"
        )
    return Play.from_episodes(episodes[::-1], {"name": name}, name)


def _runs(steps: Iterable[Step]) -> list[Sequence[Step]]:
    """Steps that follow each other, at most `LOOKS` of them; in the order of their last ones."""
    growing: dict[str, list[Step]] = {}
    runs: list[list[Step]] = []
    for step in steps:
        run = growing.get(step.chain)
        if run is None or not step.follows(run[-1]) or len(run) >= LOOKS:
            growing[step.chain] = run = []
            runs.append(run)
        run.append(step)
    return sorted((run for run in runs if len(run) > 1), key=lambda run: run[-1].time)


def _episode(run: Sequence[Step], *, pictures: bool = True) -> SparseEpisode:
    executed = [step.executed for step in run[1:]]
    moments = np.concatenate([[0], np.cumsum([len(actions) for actions in executed])]).astype(np.int64)
    cameras = run[0].pictures if pictures else ()
    return SparseEpisode(
        images={camera: np.stack([decode_frame(step.pictures[camera]) for step in run]) for camera in cameras},
        state=np.stack([step.state for step in run]),
        action=np.concatenate(executed),
        is_play=True,
        observed=moments,
    )
