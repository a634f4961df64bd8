"""Transitions as the baselines read them: demonstrations with their instructions, and play with its pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfalign.align.measure import draw_noise, time_quantiles
from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.data.transforms import pixels_to_model, resize_with_pad
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import ACTION, FlowNoise
from selfalign.policy import Policy, concatenate
from selfalign.types import Transition


@dataclass(frozen=True, eq=False)
class FlowSamples:
    """Transitions with the noise and flow times at which their losses are taken."""

    batch: Transition
    noise: FlowNoise
    time: Float[Tensor, " B"]

    @classmethod
    def draw(cls, batch: Transition, generator: torch.Generator) -> Self:
        """Noise and times as in training."""
        noise = draw_noise(batch, generator)
        time = flow.sample_time(batch.observation.batch_size, generator=generator)
        return cls(batch, noise, time.to(noise.actions.device))

    @classmethod
    def fixed(cls, batch: Transition, seed: int) -> Self:
        """The same at every measurement: each sample at a flow time of its own, evenly spread over their quantiles."""
        generator, size = torch.Generator().manual_seed(seed), batch.observation.batch_size
        noise = draw_noise(batch, generator)
        quantiles = (torch.randperm(size, generator=generator) + 0.5) / size
        return cls(batch, noise, time_quantiles(quantiles).to(noise.actions.device))


def draw_rows(count: int, size: int, generator: torch.Generator) -> Int[Tensor, " B"]:
    """Rows of a batch: without repetition where there are enough."""
    if count >= size:
        return torch.randperm(count, generator=generator)[:size]
    return torch.randint(count, (size,), generator=generator)


def spread_rows(count: int, most: int) -> Int[Tensor, " B"]:
    """At most so many of `count` rows, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


# ---- demonstrations ------------------------------------------------------------------------------------------------


def read_demonstrations(policy: Policy, episodes: Sequence[Episode]) -> tuple[Episode, ...]:
    """Demonstrations that can be learned from, with the cameras under the model's names; shorter ones than a chunk of
    actions are left out.

    Raises:
        ValueError: none is longer than a chunk, one has no instruction, or they do not fit together or the policy.
    """
    without = [str(index) for index, episode in enumerate(episodes) if not episode.task.strip()]
    if without:
        raise ValueError(f"demonstrations need an instruction; those at {', '.join(without)} have none")
    # No features of next observations are asked for: acting has none.
    told = replace(Play.from_episodes(episodes, name="demonstrations"), features=policy.settings.features)
    play, horizon = policy.repack_play(told), policy.model.config.action_horizon
    play.require(horizon)
    return tuple(episode for episode in play.episodes if len(episode.pairs(horizon)))


def demonstrated(policy: Policy, episodes: Sequence[Episode], stats: NormStats, *, stride: int = 1) -> Transition:
    """`Policy.transitions` of `read_demonstrations`, each with its instruction in the prompt, as acting has it."""
    parts = [policy.transitions([episode], stats, stride=stride) for episode in episodes]
    batch = concatenate(parts)
    tasks = [e.task for e, part in zip(episodes, parts, strict=True) for _ in range(part.observation.batch_size)]
    states = list(batch.observation.state[:, : stats.state_dim].cpu().numpy()) if policy.tokenizer.reads_state else None
    tokens, token_mask = (t.to(policy.device) for t in policy.tokenizer.encode(tasks, states))
    return replace(batch, observation=replace(batch.observation, tokens=tokens, token_mask=token_mask))


@torch.no_grad()
def action_losses(
    policy: Policy,
    episodes: Sequence[Episode],
    stats: NormStats,
    contexts: Mapping[str, EmbodimentContext],
    seed: int = 0,
) -> dict[str, float]:
    """Flow-matching loss of the action expert on a body's own demonstrations, under each context.

    All contexts meet the same samples, noise and flow times. Nothing is told where no demonstration is longer than a
    chunk of actions.

    Raises:
        ValueError: as `read_demonstrations`.
    """
    if not any(len(episode) > policy.model.config.action_horizon for episode in episodes):
        return {}
    batch = demonstrated(policy, read_demonstrations(policy, episodes), stats, stride=2)
    fixed, prefix = FlowSamples.fixed(batch, seed), policy.model.prefix(batch.observation)

    def loss(context: EmbodimentContext) -> float:
        told = {"noise": fixed.noise, "time": fixed.time, "prefix": prefix}
        return policy.model.losses(batch, context.to(policy.device), parts=(ACTION,), **told).scalars()[ACTION]

    return {name: loss(context) for name, context in contexts.items()}


# ---- pixels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pictures:
    """Transitions with the pixels of both of their moments, for what trains the vision tower.

    The frames are kept as uint8: float pixels of minutes of play would not fit everywhere.
    """

    transitions: Transition
    """Without the tower's tokens."""
    frames: Mapping[str, UInt8[np.ndarray, "F S S 3"]]
    """Of the cameras that the body has, resized."""
    now: Int[np.ndarray, " N"]
    """Row in `frames` of each transition's o_t."""
    later: Int[np.ndarray, " N"]
    """Of its next observation, o_{t+H} unless the model has another."""

    @classmethod
    def of(cls, policy: Policy, episodes: Sequence[Episode], transitions: Transition, stride: int = 1) -> Self:
        """The pixels of `policy.transitions(episodes, ..., stride=stride)`."""
        config = policy.model.config
        cameras = [camera for camera in config.cameras if camera in episodes[0].images]
        side, now, later, offset = config.image_size, [], [], 0
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
        for episode in episodes:
            pairs = policy.pairs(episode, stride)
            now.append(pairs.now + offset)
            later.append(pairs.later + offset)
            for camera in cameras:
                frames[camera].append(resize_with_pad(episode.images[camera], side, side))
            offset += len(episode.state)
        bare = replace(transitions, observation=replace(transitions.observation, image_features=None))
        joined = {camera: np.concatenate(parts) for camera, parts in frames.items()}
        return cls(bare, joined, np.concatenate(now), np.concatenate(later))

    def __len__(self) -> int:
        return len(self.now)

    def batch(self, policy: Policy, rows: Int[Tensor, " B"]) -> Transition:
        """Those transitions, with the pixels of o_t in their observations."""
        part = self.transitions[rows.to(self.transitions.actions.values.device)]
        images = self.images(policy, self.now[rows.numpy()])
        return replace(part, observation=replace(part.observation, images=images))

    def images(self, policy: Policy, frames: Int[np.ndarray, " B"]) -> dict[str, Float[Tensor, "B 3 S S"]]:
        """Pixels of some frames for all cameras of the model; those that the body lacks are grey, as in acting."""
        side = policy.model.config.image_size
        return {
            camera: (
                pixels_to_model(self.frames[camera][frames])
                if camera in self.frames
                else torch.zeros(len(frames), 3, side, side)
            ).to(policy.device)
            for camera in policy.model.config.cameras
        }
