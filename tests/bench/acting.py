"""Policies without a network, and one with the smallest, for tests of what is around the network."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from selfalign import presets
from selfalign.bench.rollout import Arena
from selfalign.checkpoint import save_checkpoint
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.sim.bodies import BodySpec
from selfalign.sim.tasks import HOVER, Task

MODEL = SimpleNamespace(config=SimpleNamespace(cameras=("scene",), image_size=64, action_horizon=8, action_dim=8))


class ReachingActor:
    """Looks the cube up in the simulator, but learns where the tip is from the observed state, and speaks the body's
    own numbers: it succeeds only if the rollout hands over the right state, instruction and action of each episode."""

    model = MODEL

    def __init__(self, arena: Arena, body: BodySpec):
        self.arena, self.body = arena, body
        self.batches: list[int] = []
        self.images: list[np.ndarray] = []
        self.noises: list[np.ndarray] = []

    def act(self, observation, context=None, *, noise=None, num_steps=10):
        states, instructions = observation["observation.state"], observation["task"]
        self.batches.append(len(states))
        self.images.append(observation["observation.images.scene"])
        self.noises.append(np.asarray(noise))
        sims = self.arena.simulations(len(states))
        return np.stack([self._chunk(*row) for row in zip(sims, states, instructions, strict=True)])

    def _chunk(self, sim, state, instruction: str) -> np.ndarray:
        tip = self.body.state_space.frame.invert(state)[:3]
        goal = sim.cube_position(Task.parse(instruction).colour) + [0, 0, HOVER]
        step = np.clip((goal - tip) / 0.03 / 4, -0.5, 0.5)
        return np.stack([self.body.action_space.frame.apply(np.append(step, -1.0)) for _ in range(8)])


class StillActor:
    """Never moves."""

    model = MODEL

    def __init__(self, body: BodySpec):
        self.body = body

    def act(self, observation, context=None, *, noise=None, num_steps=10):
        return np.zeros((len(observation["task"]), 8, self.body.action_dim))


def write_checkpoint(folder: Path) -> Path:
    """An untrained model as small as it gets, with a checkpoint's files."""
    torch.manual_seed(0)
    config = presets.tiny()
    stream = {"depth": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    expert = StreamConfig(width=16, mlp_dim=32, **stream)
    small = replace(
        config,
        vlm=StreamConfig(width=16, mlp_dim=32, **stream),
        action=expert,
        alignment=expert,
        ttt=TTTConfig(num_heads=2, head_dim=8),
    )
    settings = AlignSettings(steps=2, batch_size=4)
    return save_checkpoint(Policy.from_model(VLA(small), settings), folder)
