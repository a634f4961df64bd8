"""A model of a few thousand parameters with every part, and batches for it."""

import torch

from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.types import ActionChunk, Observation, Transition

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def small_config(**changes) -> VLAConfig:
    expert = StreamConfig(width=16, mlp_dim=32, depth=3, **HEADS)
    settings = {
        "vlm": StreamConfig(width=24, mlp_dim=32, depth=3, **HEADS),
        "action": expert,
        "alignment": expert,
        "ttt": TTTConfig(num_heads=2, head_dim=8),
        "vision": KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=3, free=1, grid=2, feature_dim=4),
        "vocab_size": 40,
        "state_dim": 5,
        "action_dim": 4,
        "action_horizon": 6,
    }
    return VLAConfig(**{**settings, **changes})


def randomise(model: VLA, seed: int = 0) -> VLA:
    """Every parameter random, so that nothing is hidden by a zero or a one of the initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_batch(model: VLA, batch: int = 4, prompt: int = 5, seed: int = 0) -> Transition:
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int):
        return torch.randn(*shape, generator=generator)

    size = config.image_size
    tokens = torch.randint(1, config.vocab_size, (batch, prompt), generator=generator)
    token_mask = torch.ones(batch, prompt, dtype=torch.bool)
    token_mask[0, 2:] = False
    observation = Observation(
        images={c: draw(batch, 3, size, size).clamp(-1, 1) for c in config.cameras},
        image_masks={c: torch.ones(batch, dtype=torch.bool) for c in config.cameras},
        state=draw(batch, config.state_dim),
        tokens=tokens,
        token_mask=token_mask,
    )
    following = draw(batch, *model.feature_mean.shape)
    return Transition(observation, ActionChunk(draw(batch, config.action_horizon, config.action_dim)), following)
