"""The two ends of the comparison, which move no weight of the policy: `frozen` and `selfalign`."""

from dataclasses import dataclass

from selfalign.align.offline import AlignConfig, align
from selfalign.baselines.method import Given, Outcome


@dataclass(frozen=True)
class FrozenConfig:
    """Nothing to choose."""


def frozen(given: Given, config: FrozenConfig) -> Outcome:
    """The policy as it is: the prior W0, with the statistics of the body's play."""
    return Outcome(given.policy, given.context_of(given.policy), {}, 0)


@dataclass(frozen=True)
class SelfalignConfig:
    """Fields of `AlignConfig`; what is None is as the checkpoint was rehearsed."""

    steps: int | None = None
    learning_rate: float | None = None
    decay_steps: float | None = None
    batch_size: int | None = None


def selfalign(given: Given, config: SelfalignConfig) -> Outcome:
    """`selfalign.align`: a context fitted to play. A rejected fit leaves the prior, as for a user."""
    plan = AlignConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        decay_steps=config.decay_steps,
        batch_size=config.batch_size,
        seed=given.seed,
    )
    result = align(given.policy, given.own_play(), config=plan, progress=given.progress)
    history = {**result.history.to_dict(), "verdict": result.verdict.to_dict()}
    context = given.context_of(given.policy, like=result.context)
    return Outcome(given.policy, context, history, context.num_bytes)
