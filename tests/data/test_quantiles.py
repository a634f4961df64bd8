import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.data.quantiles import QuantileSketch

LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)
STREAMS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(size=n),
    "gripper": lambda rng, n: (rng.uniform(size=n) < 0.3).astype(float),
    "drifting": lambda rng, n: np.linspace(-5, 5, n) + rng.normal(size=n) * 0.1,
    "constant": lambda rng, n: np.full(n, 0.7),
}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_what_fits_is_numpys(sizes, seed):
    sizes = [*sizes, 1]
    values = np.random.default_rng(seed).normal(size=(sum(sizes), 2)).astype(np.float32)
    sketch = QuantileSketch()
    for block in np.split(values, np.cumsum(sizes)[:-1]):
        sketch.update(block)
    levels = (0.0, *LEVELS, 1.0)
    assert sketch.exact
    np.testing.assert_allclose(sketch.quantile(*levels), np.quantile(values.astype(float), levels, axis=0), atol=1e-12)


@pytest.mark.parametrize("stream", STREAMS)
def test_beyond_that_the_rank_is_right_to_two_ten_thousandths(stream):
    """A t-digest bounds the error in rank, not in value: at most half a centroid, here merged twenty times."""
    values = STREAMS[stream](np.random.default_rng(0), 200_000).astype(np.float32)
    sketch = QuantileSketch(exact_frames=10_000)
    for block in np.split(values, 100):
        sketch.update(block[:, None])
    assert not sketch.exact
    ordered = np.sort(values)
    for level, (found,) in zip(LEVELS, sketch.quantile(*LEVELS), strict=True):
        slack = 1e-6 * max(1.0, abs(found))
        below = np.searchsorted(ordered, found - slack, "left") / len(values)
        upto = np.searchsorted(ordered, found + slack, "right") / len(values)
        assert below - 2e-4 <= level <= upto + 2e-4, (level, found, below, upto)


def test_means_of_the_quantiles_of_parts_are_not_quantiles():
    """What is computed here instead: every tenth episode moves far, and averaging hides it."""
    rng = np.random.default_rng(0)
    episodes = [rng.normal(scale=10.0 if i % 10 == 0 else 0.1, size=(500, 1)) for i in range(50)]
    sketch = QuantileSketch(exact_frames=2_000)
    for episode in episodes:
        sketch.update(episode)
    (found,), (exact,) = sketch.quantile(0.99), np.quantile(np.concatenate(episodes), [0.99], axis=0)
    averaged = np.mean([np.quantile(episode, 0.99) for episode in episodes])
    assert abs(found[0] - exact[0]) < 0.05 * exact[0] < abs(averaged - exact[0])


def test_memory_does_not_grow_with_the_stream():
    sketch, rng = QuantileSketch(exact_frames=10_000), np.random.default_rng(0)
    block = rng.normal(size=(10_000, 4))
    held = []
    tracemalloc.start()
    for _ in range(12):
        sketch.update(block)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] < 1.3 * held[3] < 2e6


def test_quantiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="of 0 frames"):
        QuantileSketch().quantile(0.5)
