"""Whole systems by name. A preset is a function that returns a frozen config."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from selfalign.model.config import VLAConfig
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig, SigLIPConfig

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
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 24}
    upper = (2, 3, 4)
    expert = StreamConfig(96, 256, depth=3, reads=upper, **heads)
    return VLAConfig(
        vlm=StreamConfig(80, 224, depth=5, **heads),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=4, head_dim=24, positions=upper),
        vision=KeypointTowerConfig(image_size=96, named=7, free=0, grid=1, depth_width=192),
        cameras=("scene", "wrist"),
        vocab_size=258 + len(WORDS),
        prompt_merges=WORDS,
        grounding=True,
    )


def small() -> VLAConfig:
    """About eighty million parameters: the architecture of the full size, for training from nothing on one GPU."""
    heads: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 64}
    expert = StreamConfig(256, 1024, depth=10, **heads)
    return VLAConfig(
        vlm=StreamConfig(512, 2048, depth=10, **heads),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=4, head_dim=64),
        vision=SigLIPConfig(width=384, mlp_dim=1536, depth=8, num_heads=6),
        vocab_size=258 + len(WORDS),
        prompt_merges=WORDS,
    )


def pi05_alignment_debug() -> VLAConfig:
    """The architecture of `pi05_aligned` in three hundred thousand parameters, to try out a training in a minute."""
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 16}
    expert = StreamConfig(32, 64, depth=4, **heads)
    return VLAConfig(
        vlm=StreamConfig(48, 96, depth=4, **heads),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=2, head_dim=16),
        vision=SigLIPConfig(width=32, mlp_dim=64, depth=2, num_heads=2, patch_size=8, image_size=32),
        vocab_size=258 + len(WORDS),
        prompt_merges=WORDS,
    )


# ---- full size -----------------------------------------------------------------------------------------------------


def pi0() -> VLAConfig:
    """pi0 as openpi builds it (arXiv 2410.24164): 3.24 billion parameters, without the expert's unused `lm_head`."""
    heads: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 256}
    return VLAConfig(
        vlm=StreamConfig(2048, 16_384, depth=18, **heads),
        action=StreamConfig(1024, 4096, depth=18, **heads),
        alignment=None,
        ttt=TTTConfig(positions="none"),
        vision=SigLIPConfig(),
        vocab_size=257_152,
        max_token_len=48,
        cameras=("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"),
        state_dim=32,
        action_dim=32,
        action_horizon=50,
        time="concat",
    )


def pi05() -> VLAConfig:
    """pi0.5 as openpi builds it (arXiv 2504.16054): time through adaRMS, the state in the prompt."""
    return replace(pi0(), time="adarms", state_token=False, max_token_len=200)


def pi0_aligned(
    alignment_depth: int = 18,
    ttt_positions: tuple[int, ...] | str | None = None,
    ttt_heads: int = 16,
    ttt_head_dim: int = 64,
    alpha: float = 0.1,
) -> VLAConfig:
    """pi0 with an alignment expert and TTT layers.

    Args:
        alignment_depth: layers of the alignment expert, 18, 8, 6 or 4; `evenly_spaced` says which VLM layers they read.
        ttt_positions: depths of the VLM with a TTT layer; None: those that the alignment expert reads, so that the
            alignment losses reach every one of them.
        ttt_heads, ttt_head_dim: each TTT layer's W1 is `[heads, f, f]`; by default, W is 4.8 MB in float32.
        alpha: 0 makes the TTT layers absent at first, and also blocks the gradient to W.
    """
    return aligned(pi0(), alignment_depth, ttt_positions, TTTConfig(ttt_heads, ttt_head_dim, alpha_init=alpha))


def pi05_aligned(
    alignment_depth: int = 18,
    ttt_positions: tuple[int, ...] | str | None = None,
    ttt_heads: int = 16,
    ttt_head_dim: int = 64,
    alpha: float = 0.1,
    state_token: bool = True,
) -> VLAConfig:
    """pi0.5 with an alignment expert and TTT layers; arguments as in `pi0_aligned`.

    Args:
        state_token: give the state as the suffix's first token, as pi0 does, so that one prompt without the state
            serves both experts; False keeps pi0.5's own suffix, which equals its checkpoints exactly.
    """
    plain = replace(pi05(), state_token=state_token)
    return aligned(plain, alignment_depth, ttt_positions, TTTConfig(ttt_heads, ttt_head_dim, alpha_init=alpha))


def aligned(
    plain: VLAConfig, alignment_depth: int, ttt_positions: tuple[int, ...] | str | None, ttt: TTTConfig
) -> VLAConfig:
    """A plain policy of any size with an alignment expert and TTT layers; arguments as in `pi0_aligned`."""
    reads = evenly_spaced(alignment_depth, plain.vlm.depth)
    alignment = replace(plain.action, depth=alignment_depth, reads=reads)
    return replace(
        plain, alignment=alignment, ttt=replace(ttt, positions=reads if ttt_positions is None else ttt_positions)
    )


def evenly_spaced(depth: int, vlm_depth: int) -> tuple[int, ...]:
    """The VLM layers that a stream of `depth` layers reads: evenly spaced, the last one included.

    Of 18: 8 layers read 1, 3, 5, 8, 10, 12, 14, 17; 6 layers read 2, 5, 8, 11, 14, 17; 4 layers read 3, 8, 12, 17.
    """
    if not 1 <= depth <= vlm_depth:
        raise ValueError(f"an expert reads 1 to {vlm_depth} layers of the VLM, got {depth}")
    return tuple((i + 1) * vlm_depth // depth - 1 for i in range(depth))


PRESETS: dict[str, Callable[[], VLAConfig]] = {
    "tiny": tiny,
    "small": small,
    "pi05_alignment_debug": pi05_alignment_debug,
    "pi0": pi0,
    "pi05": pi05,
    "pi0_aligned": pi0_aligned,
    "pi05_aligned": pi05_aligned,
}


def get(name: str) -> VLAConfig:
    """The preset of that name."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
