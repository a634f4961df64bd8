"""A very small policy with random weights, and play of a made-up robot that obeys simple laws."""

import hashlib

import numpy as np
import torch

from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.policy import Policy
from selfalign.settings import AlignSettings

HORIZON = 4


def small_policy(seed: int = 0, cameras: tuple[str, ...] = ("scene",)) -> Policy:
    torch.manual_seed(seed)
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    expert = StreamConfig(width=16, mlp_dim=24, depth=2, **heads)
    config = VLAConfig(
        vlm=StreamConfig(width=12, mlp_dim=20, depth=2, **heads),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=2, head_dim=8, alpha_init=0.8),
        vision=KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=2, free=1, grid=2, feature_dim=4),
        max_token_len=24,
        cameras=cameras,
        state_dim=6,
        action_dim=5,
        action_horizon=HORIZON,
    )
    return Policy.from_model(VLA(config).eval(), AlignSettings(learning_rate=3e-2, batch_size=16, steps=30))


def make_episode(
    seed: int = 0, length: int = 16, size: int = 16, scale: float = 1.0, steady: bool = False, **changes
) -> Episode:
    """A bright square moves as the actions say: `state += 0.1 * action / scale`; `steady`: one action throughout."""
    rng = np.random.default_rng(seed)
    motion = np.tile(rng.normal(size=3), (length, 1)) if steady else rng.normal(size=(length, 3))
    action = (scale * motion).astype(np.float32)
    state = np.concatenate([np.zeros((1, 3)), 0.1 * np.cumsum(motion[:-1], axis=0)]).astype(np.float32)
    image = rng.integers(0, 40, (length, size, size, 3), dtype=np.uint8)
    for frame, (x, y, _) in zip(image, state, strict=True):
        column, row = (int(np.clip(round(size / 2 + size * p), 1, size - 2)) for p in (x, y))
        frame[row - 1 : row + 2, column - 1 : column + 2] = 255
    return Episode(**({"images": {"scene": image}, "state": state, "action": action, "is_play": True} | changes))


def make_play(count: int = 6, length: int = 16, seed: int = 0, **changes) -> Play:
    episodes = [make_episode(100 * seed + i, length, **changes) for i in range(count)]
    return Play.from_episodes(episodes, {"name": "toy"})


def raw_observation(episode: Episode, frame: int | None = 0, task: str = "reach") -> dict:
    """One frame as a raw observation, or all of them as a batch."""
    rows = slice(None) if frame is None else frame
    images = {f"observation.images.{camera}": x[rows] for camera, x in episode.images.items()}
    return {**images, "observation.state": episode.state[rows], "task": task}


def content_hash(model: torch.nn.Module) -> dict[str, str]:
    """A hash of every parameter and buffer by name."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for name, t in tensors.items()}
