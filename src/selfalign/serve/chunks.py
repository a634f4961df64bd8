"""From action chunks to one action a step: what a robot's control loop needs between two answers of the server."""

from collections import deque

import numpy as np
from jaxtyping import Float


class ActionChunks:
    """Hands out the actions of overlapping chunks one by one.

    Without smoothing, the newest chunk is followed. With it, an action is the weighted mean of what every chunk that
    covers this step says of it, as in ACT (arXiv 2304.13705): w_i = exp(-decay * i), i = 0 for the oldest, so a larger
    decay holds on to older plans for longer and 0 is the plain mean. Jumps between chunks go, and so does some of the
    reaction to what has just been seen.

    Args:
        execute: steps of a chunk that are carried out before the next is wanted; None: all, or with smoothing 1.
        smoothing: the decay; None: none.

    Raises:
        ValueError: fewer than one step, or a negative decay.
    """

    def __init__(self, execute: int | None = None, smoothing: float | None = None):
        if (execute is not None and execute < 1) or (smoothing is not None and not smoothing >= 0):
            raise ValueError(f"execute must be at least 1 and smoothing not negative, got {execute} and {smoothing}")
        self._execute, self._decay = execute if smoothing is None else execute or 1, smoothing
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # (step of its first action, chunk), oldest first
        self._step = 0

    @property
    def wants_chunk(self) -> bool:
        """Whether the robot should look and ask before its next step."""
        if not self._chunks:
            return True
        start, chunk = self._chunks[-1]
        return self._step - start >= min(self._execute or len(chunk), len(chunk))

    def push(self, chunk: np.ndarray) -> None:
        """A chunk [H, A] whose first action is for the next step.

        Raises:
            ValueError: not [H, A], or another A than before.
        """
        if chunk.ndim != 2 or not chunk.size or (self._chunks and chunk.shape[1] != self._chunks[-1][1].shape[1]):
            raise ValueError(f"a chunk is [H, A] with the same A throughout, got {list(chunk.shape)}")
        if self._decay is None:
            self._chunks.clear()
        self._chunks.append((self._step, chunk))

    def next(self) -> Float[np.ndarray, " A"]:
        """The action of this step.

        Raises:
            LookupError: no chunk covers it.
        """
        while self._chunks and self._step - self._chunks[0][0] >= len(self._chunks[0][1]):
            self._chunks.popleft()
        # Chunks may differ in length, so a newer one can end before an older one.
        rows = [chunk[self._step - start] for start, chunk in self._chunks if self._step - start < len(chunk)]
        if not rows:
            raise LookupError("no chunk covers this step: push one first")
        self._step += 1
        weights = np.exp(-(self._decay or 0.0) * np.arange(len(rows)))
        return (weights[:, None] * rows).sum(0) / weights.sum() if len(rows) > 1 else rows[0]

    def clear(self) -> None:
        """Forgets all plans: a new episode begins."""
        self._chunks.clear()
        self._step = 0
