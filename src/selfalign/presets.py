"""Whole systems by name. A preset is a function that returns a frozen config."""

from collections.abc import Callable

from selfalign.model.policy import VLAConfig
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig

WORDS = (
    *(" reach", " push", " lift", " the"),
    *(" red", " green", " blue", " yellow"),
    *(" cube", " to", " left", " right", " forward", " back"),
)
"""What the simulated tasks are told in; anything else is read byte by byte."""


def tiny() -> VLAConfig:
    """About two million parameters: trains on two CPU cores in about an hour.

    The experts read the VLM's upper layers: what an instruction means is known only after two layers of it, and every
    layer of an expert has a context to read.
    """
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 24}
    upper = (2, 3, 4)
    expert = StreamConfig(96, 256, depth=3, reads=upper, **heads)
    return VLAConfig(
        vlm=StreamConfig(80, 224, depth=5, **heads),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=4, head_dim=24, positions=upper),
        vision=KeypointTowerConfig(image_size=64, named=7, free=0),
        vocab_size=258 + len(WORDS),
        prompt_merges=WORDS,
        grounding=True,
    )


PRESETS: dict[str, Callable[[], VLAConfig]] = {"tiny": tiny}


def get(name: str) -> VLAConfig:
    """The preset of that name."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
