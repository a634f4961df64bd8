"""A small model, recordings of two rigs made of noise, and a training of the one on the other."""

from pathlib import Path

import numpy as np
import torch

from selfalign.align.rehearsal import RehearsalConfig, make_objective
from selfalign.data.cache import EpisodeCache
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.perturb import EmbodimentPerturbation, LinearFrame
from selfalign.data.transforms import Tokenizer
from selfalign.data.virtual import FrameFeatures, ModelShape, VirtualSources
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.train.parallel import make_engine
from selfalign.train.step import OptimConfig, TrainState, make_state
from selfalign.train.world import ALONE

HORIZON = 4
OPTIM = OptimConfig(warmup_steps=2)
HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}


def tiny_model(span: int | None = None) -> VLA:
    torch.manual_seed(0)
    expert = StreamConfig(width=16, mlp_dim=16, depth=2, **HEADS)
    tower = KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=2, free=0, grid=1, feature_dim=2)
    config = VLAConfig(
        vlm=expert,
        action=expert,
        alignment=expert,
        ttt=TTTConfig(2, 8, span=span),
        vision=tower,
        action_horizon=HORIZON,
    )
    model = VLA(config)
    model.vision.requires_grad_(False)
    return model


def make_cache(folder: Path) -> EpisodeCache:
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "data", fps=20.0, embodiments=[{"name": "a"}, {"name": "b"}]) as writer:
        for i in range(12):
            length = int(rng.integers(8, 14))
            writer.add_episode(
                Episode(
                    images={"scene": rng.integers(0, 255, (length, 16, 16, 3), dtype=np.uint8)},
                    state=rng.normal(size=(length, 4)).astype(np.float32),
                    action=rng.normal(size=(length, 4)).astype(np.float32),
                    task="" if i % 3 else "reach the red cube",
                    embodiment_index=i % 2,
                    is_play=bool(i % 3),
                )
            )
    return EpisodeCache.build(LeRobotReader(folder / "data"), folder / "cache")


def draw(rng: np.random.Generator, rig, width: float) -> EmbodimentPerturbation:
    return EmbodimentPerturbation(
        LinearFrame.sample(rng, width=width), LinearFrame.sample(rng, offset=0.1, width=width)
    )


def make_sources(cache: EpisodeCache, tokenizer: Tokenizer | None = None, **settings) -> VirtualSources:
    model = tiny_model()
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(cache.num_frames, model.vision.num_tokens, model.vision.token_dim)).astype(np.float16)
    following = rng.normal(size=(cache.num_frames, *model.feature_mean.shape)).astype(np.float32)
    features = FrameFeatures({"scene": tokens}, following)
    return VirtualSources(cache, features, tokenizer or ByteTokenizer(48), ModelShape(HORIZON, 8, 8), draw, **settings)


def rehearsal_config(scheme="rehearsal", **changes) -> RehearsalConfig:
    settings = {"slots": 3, "play_per_slot": 4, "demonstrations_per_slot": 2, "max_age": 3}
    fixed = {"source_bodies": 5} if scheme == "per_body" else {}
    return RehearsalConfig(scheme=scheme, **{**settings, **fixed, **changes})


def state_for(
    sources: VirtualSources,
    scheme="rehearsal",
    total: int = 6,
    span: int | None = None,
    *,
    model: VLA | None = None,
    optim: OptimConfig = OPTIM,
    world=ALONE,
    strategy="ddp",
    **changes,
) -> TrainState:
    model = tiny_model(span) if model is None else model
    objective = make_objective(model, sources, rehearsal_config(scheme, **changes), world)
    return make_state(model, objective, optim, total, make_engine(model, world, strategy))


def seeded_state(sources: VirtualSources, *args, **settings) -> TrainState:
    """`state_for`, with torch's generator as it was when the numbers in `trained_before.json` were written."""
    state = state_for(sources, *args, **settings)
    torch.manual_seed(3)
    return state
