"""Which seeds draw the bodies that are learned from, that choices are made on, and that results are of.

| bodies | seeds | region | for |
|---|---|---|---|
| source | `SOURCE_RIGS`, `SNAPSHOT_RIGS` | source | pretraining (`runs/1_pretrain.sh`) |
| validation | from `VALIDATION_FROM` on; ours: `VALIDATION` | held out | choices: recipes, settings, thresholds |
| test | all below; ours: `TEST` | held out | results |

Regions are those of `sim/regions.py`. `bench adapt --seed` and the cells of a matrix take any seed, and each gives
other bodies: every number of a body is drawn from a generator of its seed. So whoever measures with a seed below
`VALIDATION_FROM` meets bodies that no choice was made on, and that no source resembles. (Of ours, 0 was looked at while
the recipe was made, on earlier draws of its bodies: see LOG.md. 1 and 2 were first measured when it was done; README's
headline is of 2.)
"""

from typing import Literal

Split = Literal["validation", "test"]

SOURCE_RIGS = 0
"""Seed of the recorded rigs, and of pretraining."""
SNAPSHOT_RIGS = 5
"""Seed of the pictures that the vision tower learns on."""
VALIDATION_FROM = 1_000_000
"""Seeds from here on are for choices."""
VALIDATION = (1_000_000, 1_000_001, 1_000_002)
TEST = (0, 1, 2)


def split_of(seed: int) -> Split:
    """What bodies of a seed are for."""
    return "validation" if seed >= VALIDATION_FROM else "test"


def seeds_of(split: Split) -> tuple[int, ...]:
    """Our seeds of a split."""
    return VALIDATION if split == "validation" else TEST
