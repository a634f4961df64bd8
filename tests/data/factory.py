"""Small made-up episodes."""

import numpy as np

from selfalign.data.episodes import Episode

BODIES = [{"name": "left"}, {"name": "right"}]


def make_episode(seed: int = 0, length: int = 12, size: tuple[int, int] = (16, 24), **changes) -> Episode:
    """Noise in every column, so that any mix-up of frames, rows or channels shows."""
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=(length, *shape)).astype(np.float32)

    values = {
        "images": {"scene": rng.integers(0, 256, (length, *size, 3), dtype=np.uint8)},
        "state": numbers(4),
        "action": numbers(4),
        "task": ("", "reach the red cube", "lift the green cube")[seed % 3],
        "embodiment_index": seed % 2,
        "is_play": seed % 3 == 0,
        "extra": {
            "observation.joints": numbers(8),
            "privileged.points": numbers(7, 4),
            "grasped": rng.integers(0, 2, length).astype(bool),
        },
    }
    return Episode(**(values | changes))


def assert_same(actual: Episode, expected: Episode) -> None:
    columns = expected.columns()
    assert actual.columns().keys() == columns.keys()
    for name, values in columns.items():
        found = actual.columns()[name]
        assert found.dtype == values.dtype, name
        np.testing.assert_array_equal(found, values, err_msg=name)
    for name in ("task", "fps", "embodiment_index", "is_play"):
        assert getattr(actual, name) == getattr(expected, name), name
