"""`nearest`: nothing is fitted; of many stored contexts, that of the body which the play resembles most.

Where it does as well as aligning, a new body is one that was seen already, and looking it up is enough.
"""

from dataclasses import dataclass

from selfalign.align.store import ContextStore
from selfalign.baselines.method import Given, Outcome, check_positive


@dataclass(frozen=True)
class NearestConfig:
    """Looking up a context."""

    path: str | None = None
    """Folder of a `ContextStore`."""
    samples: int = 64
    """Transitions of the play on which contexts are compared."""

    def __post_init__(self) -> None:
        check_positive(self, ("samples",))


def nearest(given: Given, config: NearestConfig) -> Outcome:
    """The policy as it is, with the fast weights of the stored context that has the least play loss, and the statistics
    of the body's own play."""
    if config.path is None:
        raise ValueError("nearest: give the `path` of a store of contexts (`ContextStore`)")
    store = ContextStore(config.path)
    found = store.nearest(given.policy, given.own_play(), samples=config.samples)
    context = given.context_of(given.policy, like=store.load(found.embodiment))
    return Outcome(given.policy, context, {"nearest": found.embodiment, "loss": found.loss}, context.num_bytes)
