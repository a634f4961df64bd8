"""`ContextTable`: which context each embodiment acts with, in memory, swapped between two inferences."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfalign.align.store import ContextStore
from selfalign.data.normalize import NormStats
from selfalign.model.context import EmbodimentContext
from selfalign.policy import UNKNOWN_DISPLACEMENTS, Policy

OWN = "checkpoint"
"""Name under which the robot that a checkpoint was trained on is served."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embodiment:
    """A body that can be served. Requests keep the one that they were prepared with, so a swap never splits one."""

    name: str
    context: EmbodimentContext
    """On the policy's device."""
    stats: NormStats


class ContextTable:
    """Embodiments by name, from a folder and from the checkpoint.

    A file that cannot be used (damaged, of another model) does not keep the others from being served: whoever asks for
    its embodiment is told why.

    Args:
        policy: contexts must be of its model.
        folder: `NAME.safetensors` files, a `ContextStore`, or both; None: only the checkpoint's own robot.
        adopt: what an embodiment acts with instead of the context that was given (`Learner.adopt`); None: with that.

    Raises:
        ValueError: there is nothing to serve.
    """

    def __init__(
        self,
        policy: Policy,
        folder: str | Path | None = None,
        adopt: Callable[[str, EmbodimentContext], EmbodimentContext] | None = None,
    ):
        self._policy, self._folder, self._adopt = policy, None if folder is None else Path(folder), adopt
        self._reading, self._writing, self._swaps = threading.Lock(), threading.Lock(), 0
        self._usable: dict[str, Embodiment] = {}
        self._broken: dict[str, str] = {}
        self.refresh()
        if not self._usable:
            raise ValueError(self._nothing())

    @property
    def names(self) -> list[str]:
        """Of the embodiments that can be served, sorted."""
        return sorted(self._usable)

    @property
    def broken(self) -> Mapping[str, str]:
        """Why the others cannot be."""
        return dict(self._broken)

    def get(self, name: str | None) -> Embodiment:
        """The embodiment of a name; None: the only one there is.

        Raises:
            LookupError: it is not known, cannot be used, or none was named where there are several.
        """
        table = self._usable
        if name is None:
            if len(table) == 1:
                return next(iter(table.values()))
            raise LookupError(f"say which embodiment this is: send 'embodiment', one of {self._known()}")
        if name not in table:
            why = f": {self._broken[name]}" if name in self._broken else f"; known are {self._known()}"
            raise LookupError(f"embodiment {name[:100]!r} cannot be served{why}")
        return table[name]

    def swap(self, name: str, context: EmbodimentContext) -> None:
        """Serves `context` from the next request on; those under way end with the one that they began with.

        Raises:
            ValueError: a context of another model, or without statistics; the old one stays.
        """
        embodiment = self._embodiment(name, context)
        with self._writing:
            self._swaps += 1
            self._usable = {**self._usable, name: embodiment}
            self._broken.pop(name, None)

    def refresh(self) -> None:
        """Reads the folder again; an embodiment whose file is gone is no longer served. May be called in any thread.

        Raises:
            ValueError: there is no such folder any more; everything stays as it was.
        """
        with self._reading:
            while True:
                swaps = self._swaps
                usable, broken = self._read()
                with self._writing:
                    if swaps == self._swaps:  # else a swap came in between, and what was read is old
                        self._usable, self._broken = usable, broken
                        return

    def _read(self) -> tuple[dict[str, Embodiment], dict[str, str]]:
        usable, broken = {}, {}
        for name, read in self._sources().items():
            try:
                usable[name] = self._adopted(self._embodiment(name, read()))
            except (ValueError, TypeError, OSError, LookupError) as error:
                broken[name] = str(error)
                log.warning("embodiment %r cannot be served: %s", name, error)
        return usable, broken

    def _sources(self) -> dict[str, Callable[[], EmbodimentContext]]:
        """How each context is read."""
        policy, fingerprint = self._policy, self._policy.fingerprint()
        sources: dict[str, Callable[[], EmbodimentContext]] = {}
        if (stats := policy.stats) is not None:
            prior = policy.model.prior().detach().with_info(embodiment=OWN, norm_stats=stats.to_dict())
            sources[OWN] = lambda: prior
        if self._folder is not None:
            check_folder(self._folder)
            store = ContextStore(self._folder)
            for path in sorted(self._folder.glob("*.safetensors")):
                sources[path.stem] = lambda path=path: EmbodimentContext.load(path, fingerprint=fingerprint)
            for name in store.list():
                sources[name] = lambda name=name: store.load(name, fingerprint=fingerprint)
        return sources

    def _embodiment(self, name: str, context: EmbodimentContext) -> Embodiment:
        self._policy.check_context(context)
        if context.info.robot is None and (robot := self._policy.converted_by):
            log.warning(
                "embodiment %r does not say whose steps its numbers took; they take those of %s here", name, robot
            )
        if not all(t.isfinite().all() for t in context.tensors):
            raise ValueError("its context has weights that are NaN or infinite; align again, or restore a copy")
        if context.info.norm_stats is None:
            raise ValueError("its context carries no normalisation statistics; `selfalign align` writes them")
        stats = self._policy.with_displacements(NormStats.from_dict(context.info.norm_stats))
        if self._policy.acting.speed != 1 and stats.displacements is None:
            log.warning("embodiment %r: %s", name, UNKNOWN_DISPLACEMENTS)
        config = self._policy.model.config
        if stats.state_dim > config.state_dim or stats.action_dim > config.action_dim:
            raise ValueError(
                f"it has {stats.state_dim} state and {stats.action_dim} action dimensions, the model takes at most "
                f"{config.state_dim} and {config.action_dim}"
            )
        return Embodiment(name, context.detach().to(self._policy.device), stats)

    def _adopted(self, given: Embodiment) -> Embodiment:
        """Only what can be served is offered for adoption."""
        if self._adopt is None:
            return given
        return self._embodiment(given.name, self._adopt(given.name, given.context))

    def _known(self) -> str:
        return ", ".join(self.names[:20]) + (f" and {len(self._usable) - 20} more" if len(self._usable) > 20 else "")

    def _nothing(self) -> str:
        if self._broken:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._broken.items())
            return f"none of the contexts in {self._folder} can be served: {reasons}"
        where = "no --contexts was given" if self._folder is None else f"{self._folder} holds no context"
        return (
            f"there is no robot to serve: {where}, and the checkpoint has no statistics of one of its own; "
            "align a robot to its play (`selfalign align`) and give the folder of its context"
        )


def check_folder(folder: Path) -> None:
    """Raises `ValueError` where there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of contexts; `selfalign align --out` writes into one")
