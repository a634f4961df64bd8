"""The two ends of the comparison, which move no weight of the policy: `frozen` and `selfalign`."""

from dataclasses import dataclass, replace

from selfalign.align.offline import AlignConfig, align
from selfalign.baselines.method import Given, Outcome


@dataclass(frozen=True)
class FrozenConfig:
    """Nothing to choose."""


def frozen(given: Given, config: FrozenConfig) -> Outcome:
    """The policy as it is: the prior W0, with the statistics of the body's play."""
    return Outcome(given.policy, given.context_of(given.policy), {}, 0)


def selfalign(given: Given, config: AlignConfig) -> Outcome:
    """`selfalign.align`: a context fitted to play, drawn by the config's own seed. A rejected fit leaves the prior, as
    for a user. The history says how far the fit has moved it, `update_norm`, accepted or not."""
    whole = replace(config, interruptible=False)  # what was interrupted is not what is compared
    result = align(given.policy, given.own_play(), config=whole, progress=given.progress)
    history = {
        **result.history.to_dict(),
        "steps": result.history.steps,
        "verdict": result.verdict.to_dict(),
        "update_norm": result.fitted.distance(given.policy.model.prior()),
    }
    context = given.context_of(given.policy, like=result.context)
    return Outcome(given.policy, context, history, context.num_bytes)
