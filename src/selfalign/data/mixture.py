"""Mixtures of data sets: how often the bodies of each are drawn."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from selfalign.data.sources import SourceData


def embodiment_odds(source: SourceData, weights: Sequence[float]) -> Float[np.ndarray, " E"]:
    """How often each embodiment is drawn, so that every data set has its share of all draws; the sum is 1.

    A data set's share is spread evenly over its embodiments; one that several describe has a share of each.

    Args:
        weights: of the data sets, in the order in which `SourceData.open` was given them.

    Raises:
        ValueError: not one weight for each data set, or a weight that is not positive.
    """
    groups = sorted(set(source.groups))
    if len(weights) != len(groups):
        raise ValueError(f"{len(groups)} data sets were given and {len(weights)} weights; give one for each")
    if not all(weight > 0 for weight in weights):
        raise ValueError(f"weights of data sets must be positive, got {', '.join(map(str, weights))}; leave one out")
    odds = np.zeros(len(source.embodiments))
    for group, weight in zip(groups, weights, strict=True):
        members = sorted(source.embodiments_of(group))
        odds[members] += weight / sum(weights) / len(members)
    return odds
