"""`ContextStore`: the contexts of many bodies on disk, with versions.

    root/<body>/0001.safetensors, 0002.safetensors, ...      every version that was saved, never changed afterwards
    root/<body>/current                                      the number of the version in use

A version counts once `current` names it, and both files appear by a rename: a crash or a full disk leaves the version
that was in use in use. One process at a time writes the contexts of a body.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from selfalign.align.bank import PlayBank
from selfalign.align.measure import EvalGrid
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.model.files import write_atomically
from selfalign.policy import Policy

_VERSION = re.compile(r"(\d{4,})\.safetensors")


@dataclass(frozen=True)
class Nearest:
    """The stored context that explains some play best."""

    embodiment: str
    loss: float
    """Its play loss."""
    losses: Mapping[str, float]
    """Play loss of every context that was compared."""


@dataclass(frozen=True)
class ContextStore:
    """Contexts by the name of their body."""

    root: Path

    def __init__(self, root: str | Path):
        object.__setattr__(self, "root", Path(root))

    def list(self) -> "list[str]":
        """Names of the bodies that have a context, sorted."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(unquote(folder.name) for folder in folders if (folder / "current").is_file())

    def versions(self, embodiment: str) -> "list[int]":
        """Numbers of all versions of a body, oldest first; empty for a body that is not known."""
        folder = self.folder(embodiment)
        names = (_VERSION.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(match[1]) for match in names if match)

    def current(self, embodiment: str) -> int:
        """The version in use.

        Raises:
            LookupError: nothing is stored for this body.
            ValueError: the file that says so is damaged.
        """
        path = self.folder(embodiment) / "current"
        if not path.is_file():
            known = ", ".join(self.list()) or "nothing"
            raise LookupError(f"{self.root} holds no context of {embodiment!r}; it holds {known}")
        text = path.read_text().strip()
        if not text.isdecimal() or not self.path(embodiment, int(text)).is_file():
            raise ValueError(
                f"{path} says {text[:20]!r}, which is none of the versions {self.versions(embodiment)}; "
                "choose one with rollback(embodiment, version)"
            )
        return int(text)

    def save(self, context: EmbodimentContext, embodiment: str | None = None) -> int:
        """Stores a context as the newest version of its body and puts it into use; returns its number.

        Args:
            embodiment: the body's name; None: the context's own.

        Raises:
            ValueError: no name.
            OSError: no room, or not writable; the version that was in use is still in use.
        """
        name = context.info.embodiment if embodiment is None else embodiment
        version = max(self.versions(name), default=0) + 1
        path = self.path(name, version)
        try:
            context.save(path)
            _flush(path)
            self._use(name, version)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f"the context of {name!r} was not saved, what was stored is unchanged: {error.strerror}",
                path,
            ) from error
        return version

    def load(self, embodiment: str, version: int | None = None, *, fingerprint: str | None = None) -> EmbodimentContext:
        """Reads the version in use, or another one.

        Args:
            fingerprint: refuse a context of another model (`policy.fingerprint()`).

        Raises:
            LookupError: nothing is stored for this body, or no such version.
            ValueError: damaged, or of another model.
        """
        version = self.current(embodiment) if version is None else version
        self._require(embodiment, version)
        return EmbodimentContext.load(self.path(embodiment, version), fingerprint=fingerprint)

    def rollback(self, embodiment: str, version: int | None = None) -> int:
        """Puts an older version into use, bit for bit as it was saved, and returns its number. Nothing is deleted.

        Args:
            version: which; None: the one before the version in use.

        Raises:
            LookupError: nothing is stored for this body, or no such version.
            ValueError: there is no older one.
        """
        if version is None:
            current = self.current(embodiment)
            older = [v for v in self.versions(embodiment) if v < current]
            if not older:
                raise ValueError(f"version {current} is the oldest of {embodiment!r}: nothing to roll back to")
            version = older[-1]
        self._require(embodiment, version)
        self._use(embodiment, version)
        return version

    def nearest(self, policy: Policy, play: Play, *, samples: int = 64, times: int = 4) -> Nearest:
        """The stored context under which the play is least surprising.

        Every context is measured on the same transitions, noise and flow times, normalised with the play's own
        statistics (those of a context would reward wide ones: they make every target small). Contexts of other models
        are left out, and those whose numbers took the steps of another robot.

        Raises:
            ValueError: no stored context is of this model and robot, or the play does not fit the model.
        """
        contexts = {name: self.load(name) for name in self.list()}
        of_model = {name: c for name, c in contexts.items() if c.info.fingerprint == policy.fingerprint()}
        ours = {name: c for name, c in of_model.items() if c.info.robot in (None, policy.converted_by)}
        if not ours:
            told = f" under the robot {policy.converted_by!r}" if of_model else ""
            raise ValueError(
                f"none of the {len(contexts)} contexts in {self.root} is of model {policy.fingerprint()}{told}"
            )
        grid = EvalGrid.build(
            PlayBank.build(policy, policy.repack_play(play), policy.play_stats(play)), samples=samples, times=times
        )
        weights = policy.settings.weights
        losses = {
            name: grid.losses(policy.model, context.to(policy.device), weights).total for name, context in ours.items()
        }
        best = min(losses, key=losses.__getitem__)
        return Nearest(best, losses[best], losses)

    def folder(self, embodiment: str) -> Path:
        """Of a body, whatever its name: what a file name cannot hold is percent-encoded."""
        if not embodiment:
            raise ValueError("a context needs the name of its body: give `embodiment`")
        encoded = quote(embodiment, safe=" +@=,")
        return self.root / (encoded if not encoded.startswith(".") else "%2E" + encoded[1:])

    def path(self, embodiment: str, version: int) -> Path:
        """The file of a version, whether it is there or not."""
        return self.folder(embodiment) / f"{version:04d}.safetensors"

    def _require(self, embodiment: str, version: int) -> None:
        if not self.path(embodiment, version).is_file():
            raise LookupError(f"{embodiment!r} has no version {version}; it has {self.versions(embodiment) or 'none'}")

    def _use(self, embodiment: str, version: int) -> None:
        def write(path: Path) -> None:
            path.write_text(f"{version}\n")
            _flush(path)

        write_atomically(self.folder(embodiment) / "current", write)
        _flush(self.folder(embodiment))


def _flush(path: Path) -> None:
    """Brings a file (or a folder's list of files) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
