"""`ContextVersions`: every context that a body has acted with, who made it and when, which is in use, and the way back.

    store/<body>/0001.safetensors ...   the contexts (`ContextStore`)
    store/<body>/current                the version in use: what counts after a crash
    store/<body>/journal.log            what happened, as records (`selfalign.online.records`)

A version is in use once `current` names it, which changes by a rename; the journal is written after it. A process that
is killed in between has swapped, and the journal says so at the next opening.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfalign.align.store import ContextStore
from selfalign.model.context import EmbodimentContext
from selfalign.online.records import RecordFile, read_records

log = logging.getLogger(__name__)
GIVEN, ACCEPTED, REJECTED, ROLLED_BACK, RECOVERED = "given", "accepted", "rejected", "rolled back", "recovered"
_PUT_INTO_USE = (GIVEN, ACCEPTED, ROLLED_BACK, RECOVERED)


@dataclass(frozen=True)
class Event:
    """One line of the journal."""

    kind: str
    """`given`: by the operator, as a file; `accepted`, `rejected`: an alignment; `rolled back`; `recovered`: after a
    crash; or what `note` was told."""
    version: int
    """In use after it."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: who asked, the verdict, losses, the reason."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ContextVersions:
    """The contexts of one body of one model; one process at a time.

    Args:
        folder: of the store.
        body: its name.
        fingerprint: of the model. Versions of another model stay on disk and are not used.
        keep: versions that are kept at most; older ones that are not needed are deleted.

    Raises:
        ValueError: the journal is no journal.
        OSError: not writable.
    """

    def __init__(self, folder: Path, body: str, fingerprint: str, *, keep: int = 20):
        self.body, self.fingerprint, self._keep = body, fingerprint, keep
        self._store = ContextStore(folder)
        self.folder = self._store.folder(body)
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(".*.partial"):  # of a save that was killed
            partial.unlink(missing_ok=True)
        self._lock = threading.RLock()
        path = self.folder / "journal.log"
        self._journal = RecordFile(path)
        self._events = [Event(**json.loads(payload)) for payload in read_records(path)]
        self._recover()

    def _recover(self) -> None:
        """Brings journal and store together after a crash."""
        why = "the process ended in the middle of a change; the change counts"
        try:
            matches = self._recorded() == self._store.current(self.body)
        except LookupError:
            matches = True  # nothing is in use yet
        except ValueError as error:
            kept = [version for version in self._in_use() if version in self.numbers] or self.numbers
            matches, why = not kept, str(error)
            if kept:
                self._store.rollback(self.body, kept[-1])
        if not matches:
            self.note(RECOVERED, why=why)

    # ---- what there is ---------------------------------------------------------------------------------------------

    @property
    def numbers(self) -> list[int]:
        """Of all versions that are kept, oldest first."""
        return self._store.versions(self.body)

    @property
    def current(self) -> int:
        """In use; 0 before there is any."""
        try:
            return self._store.current(self.body)
        except (LookupError, ValueError):
            return 0

    @property
    def events(self) -> Sequence[Event]:
        """Oldest first."""
        return tuple(self._events)

    @property
    def previous(self) -> int | None:
        """The version that was in use before the one in use, without those rolled back since; None: none is left."""
        usable = [v for v in self._in_use()[:-1] if v in self.numbers and self._ours(v)]
        return usable[-1] if usable else None

    def path(self, version: int) -> Path:
        """File of a version."""
        return self._store.path(self.body, version)

    def load(self, version: int | None = None) -> EmbodimentContext:
        """The version in use, or another one; errors as `ContextStore.load`."""
        return self._store.load(self.body, version, fingerprint=self.fingerprint)

    def _in_use(self) -> list[int]:
        """Versions that were put into use, the last one last; rolling back takes away what came after."""
        stack: list[int] = []
        for event in self._events:
            if event.kind not in _PUT_INTO_USE or (stack and stack[-1] == event.version):
                continue
            if event.kind == ROLLED_BACK and event.version in stack:
                del stack[stack.index(event.version) + 1 :]
            else:
                stack.append(event.version)
        return stack

    def _recorded(self) -> int:
        return self._events[-1].version if self._events else 0

    def _ours(self, version: int) -> bool:
        try:
            self.load(version)
        except (ValueError, OSError, LookupError):
            return False
        return True

    # ---- what can happen -------------------------------------------------------------------------------------------

    def adopt(self, given: EmbodimentContext) -> EmbodimentContext:
        """What to act with, where the operator gives `given`: the version in use, unless `given` is new.

        A given context that was not seen before becomes the newest version. If the version in use is damaged, the one
        before it takes its place, and `given` if there is none.

        Raises:
            OSError: a new context cannot be stored.
        """
        digest = _digest(given, self.fingerprint)
        with self._lock:
            seen = [event.about.get("digest") for event in self._events if event.kind == GIVEN]
            if not seen or seen[-1] != digest:
                return self._put(given, GIVEN, digest=digest)
            try:
                return self.load()
            except (ValueError, LookupError, OSError) as error:
                log.error("version %d of %r cannot be used: %s", self.current, self.body, error)
                if self.previous is None:
                    return self._put(given, GIVEN, digest=digest, why=str(error))
                return self.rollback(by="the server", why=str(error))

    def accept(self, context: EmbodimentContext, **about: Any) -> int:
        """Stores a context, puts it into use, and returns its version.

        Raises:
            OSError: it cannot be stored; what was in use still is.
        """
        with self._lock:
            self._put(context, ACCEPTED, **about)
            self._prune()
            return self.current

    def rollback(self, version: int | None = None, **about: Any) -> EmbodimentContext:
        """Puts an older version into use again, bit for bit.

        Args:
            version: which; None: the one that was in use before.
            about: who, and why.

        Raises:
            ValueError: there is none before; or the version is damaged, or of another model.
            LookupError: no such version.
            OSError: not writable; what was in use still is.
        """
        with self._lock:
            target = self.previous if version is None else version
            if target is None:
                raise ValueError(f"version {self.current} is the first of {self.body!r}: nothing to roll back to")
            context = self.load(target)
            left = self.current
            self._store.rollback(self.body, target)
            self.note(ROLLED_BACK, left=left, **about)
            return context

    def note(self, kind: str, **about: Any) -> None:
        """Writes an event that leaves the version in use as it is. Without room for it, it is lost with the process."""
        with self._lock:
            event = Event(kind, self.current, about=about)
            self._events.append(event)
            try:
                self._journal.append(json.dumps(event.to_dict()).encode())
                self._journal.sync()
            except OSError as error:
                log.error("the journal of %r lacks an event (%s): %s", self.body, error, event)

    def close(self) -> None:
        self._journal.close()

    def _put(self, context: EmbodimentContext, kind: str, **about: Any) -> EmbodimentContext:
        context = context.with_info(fingerprint=self.fingerprint)
        self._store.save(context, self.body)
        self.note(kind, **about)
        return context

    def _prune(self) -> None:
        """Deletes the oldest versions beyond the number to keep, but none that is in use, before it, or given last."""
        given = [event.version for event in self._events if event.kind == GIVEN][-1:]
        needed = {self.current, self.previous, *given}
        spare = [version for version in self.numbers if version not in needed]
        for version in spare[: max(0, len(self.numbers) - self._keep)]:
            self.path(version).unlink(missing_ok=True)


def _digest(context: EmbodimentContext, fingerprint: str) -> str:
    """Of the model, the numbers and the statistics: what makes a context act as it does."""
    digest = hashlib.sha256(json.dumps([fingerprint, context.info.norm_stats], sort_keys=True).encode())
    for tensor in context.tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
