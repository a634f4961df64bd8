"""A small policy with the contexts of two made-up robots, and observations of theirs."""

import asyncio
from pathlib import Path

import torch

from align.factory import make_episode, make_play, raw_observation
from selfalign.data.normalize import NormStats
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy

SCALES = {"slow": 1.0, "fast": 20.0}
"""Of the robots' actions."""


def robot_context(policy: Policy, name: str, seed: int = 0) -> EmbodimentContext:
    stats: NormStats = make_play(scale=SCALES.get(name, 1.0)).stats()
    context = policy.model.prior().perturbed(1.0, generator=torch.Generator().manual_seed(seed))
    return context.with_info(embodiment=name, fingerprint=policy.fingerprint(), norm_stats=stats.to_dict())


def write_contexts(policy: Policy, folder: Path) -> Path:
    for seed, name in enumerate(SCALES):
        robot_context(policy, name, seed).save(folder / f"{name}.safetensors")
    return folder


def observation(seed: int = 50, task: str = "reach", size: int = 16) -> dict:
    return raw_observation(make_episode(seed, length=2, size=size), 0, task)


def run(coroutine):
    """Runs a coroutine for at most half a minute."""
    return asyncio.run(asyncio.wait_for(coroutine, 30))
