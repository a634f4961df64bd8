"""Virtual source embodiments: one rig's recordings, seen through a frame that is drawn when they are needed.

A rig (arm, gripper, camera, looks) is recorded once with canonical actions and states. Every rehearsal slot draws a
rig and a perturbation of its action and state spaces; together they are an embodiment that no other slot has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfalign.data.cache import EpisodeCache
from selfalign.data.normalize import NormStats
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.transforms import Tokenizer, dim_mask, pad_dims, tokenize_tasks
from selfalign.types import ActionChunk, Observation, Transition

DrawPerturbation = Callable[[np.random.Generator, Mapping[str, Any], float], EmbodimentPerturbation]
"""From a rig's description (a row of `meta/embodiments.json`) and a width between 0 and 1, a body that pretraining may
use: at 0 a canonical one, at 1 any."""


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """The frozen vision tower's output on every frame of a cache."""

    tokens: Mapping[str, np.ndarray]
    """Per camera, `[frames, N, D]`, float16."""
    next_features: Float[np.ndarray, "frames n F"]
    """Normalised next-observation features, float32."""
    recoloured: "FrameFeatures | None" = None
    """The same of every frame in other colours; None: there are none."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that samples are padded to."""

    horizon: int
    action_dim: int
    state_dim: int
    next_offset: int | None = None
    """Steps after which the next observation is seen, at most the horizon; None: the horizon."""

    @property
    def next_step(self) -> int:
        return self.horizon if self.next_offset is None else self.next_offset


@dataclass(frozen=True)
class PlayUse:
    """What bodies are aligned to while they are rehearsed."""

    source: Literal["play", "demonstrations"] = "play"
    """Free motion, or the transitions of demonstrations."""
    trajectories: int | None = None
    """Of each rig, at most; None: all that are recorded."""

    def __post_init__(self) -> None:
        if self.trajectories is not None and self.trajectories < 1:
            raise ValueError(f"a rig needs at least 1 trajectory of play, got {self.trajectories}")


@dataclass(frozen=True, eq=False)
class VirtualEmbodiment:
    """An embodiment in the middle of its life: its numbers, normalised with its own statistics and padded."""

    rig: int
    perturbation: EmbodimentPerturbation
    play_episodes: Int[np.ndarray, " E"]
    """Episodes of play that it is normalised with and aligned to."""
    stats: NormStats
    frames: Int[np.ndarray, " K"]
    """Frames of the rig in the cache; the arrays below are in this order."""
    state: Float[Tensor, "K S"]
    action: Float[Tensor, "K A"]
    state_mask: Bool[Tensor, " S"]
    action_mask: Bool[Tensor, " A"]
    play: Int[np.ndarray, " P"]
    """Rows (into `frames`) of transitions of play whose o_{t+H} is in the episode."""
    demonstrations: Int[np.ndarray, " Q"]
    """Rows of all frames of demonstrations."""
    demonstration_odds: Float[np.ndarray, " Q"]
    """With which probability each of them is drawn."""
    last: Int[np.ndarray, " K"]
    """Row of the last frame of each row's episode."""
    recoloured: bool = False
    """Its cameras show other colours."""


class VirtualSources:
    """Draws embodiments from recorded rigs and cuts batches from them."""

    def __init__(
        self,
        cache: EpisodeCache,
        features: FrameFeatures,
        tokenizer: Tokenizer,
        shape: ModelShape,
        draw: DrawPerturbation,
        rigs: Int[np.ndarray, " R"] | None = None,
        rig_odds: Float[np.ndarray, " E"] | None = None,
        task_weights: Mapping[str, float] | None = None,
        keypoint_words: Sequence[str] = (),
        play: PlayUse = PlayUse(),
    ):
        """Args beyond the fields:

        rigs: which of the cache's embodiments to use; None: all.
        rig_odds: how often each of the cache's embodiments is drawn, relative to the others; None: all alike.
        task_weights: how often frames of tasks that begin with a word are drawn, relative to others (1).
        keypoint_words: the words for the first keypoints of the tower; where a task has one of them, its keypoint is
            what the instruction refers to.
        play: what serves as play.
        """
        self.play = play
        self.task_weight = np.array([(task_weights or {}).get(task.split(" ")[0], 1.0) for task in cache.tasks])
        self.referent = np.array([_first_match(task, keypoint_words) for task in cache.tasks])
        self.cache, self.features, self.shape, self.draw = cache, features, shape, draw
        self.rigs = np.unique(cache.embodiment_index) if rigs is None else np.asarray(rigs)
        self.odds = None if rig_odds is None else rig_odds[self.rigs] / rig_odds[self.rigs].sum()
        self.tokens, self.token_mask = tokenize_tasks(cache.tasks, tokenizer)
        for rig in self.rigs:
            for episodes, kind in (
                (self._play_of(int(rig)), "play"),
                (cache.episodes_of(int(rig), False), "demonstration"),
            ):
                if not len(cache.transitions(shape.horizon, episodes)):
                    raise ValueError(
                        f"rig {rig} of {cache.root} has no {kind} episode longer than the horizon of {shape.horizon} "
                        "frames; record more, or leave the rig out"
                    )

    def _play_of(self, rig: int) -> Int[np.ndarray, " E"]:
        """Episodes of play; of a rig without any, its demonstrations, whose transitions serve as well."""
        play = self.cache.episodes_of(rig, self.play.source == "play")
        return (play if len(play) else self.cache.episodes_of(rig, False))[: self.play.trajectories]

    def embodiment(
        self, rig: int, perturbation: EmbodimentPerturbation, play_episodes: Int[np.ndarray, " E"] | None = None
    ) -> VirtualEmbodiment:
        """A rig's recordings in the terms of a perturbed body, normalised by (some of) its play."""
        cache, shape = self.cache, self.shape
        play = self._play_of(rig) if play_episodes is None else play_episodes
        episodes = np.concatenate([play, cache.episodes_of(rig, False)])
        spans = [cache.episode_starts[e] + np.arange(cache.episode_lengths[e]) for e in episodes]
        frames = np.concatenate(spans)
        lengths = np.array([len(span) for span in spans])
        ends = np.cumsum(lengths) - 1
        last, row = np.repeat(ends, lengths), np.arange(len(frames))
        # By place and not by the cache's flag: demonstrations may stand in for play, and then are there twice.
        is_play = np.repeat(np.arange(len(episodes)) < len(play), lengths)

        odds = self.task_weight[np.repeat(cache.task_index[episodes], lengths)[~is_play]]
        state, action = perturbation.apply(*self._canonical(frames, perturbation))
        stats = NormStats.from_arrays(state[is_play], action[is_play])
        return VirtualEmbodiment(
            rig=rig,
            perturbation=perturbation,
            play_episodes=play,
            stats=stats,
            frames=frames,
            state=torch.from_numpy(pad_dims(stats.normalize_state(state), shape.state_dim)).float(),
            action=torch.from_numpy(pad_dims(stats.normalize_action(action), shape.action_dim)).float(),
            state_mask=dim_mask(state.shape[-1], shape.state_dim),
            action_mask=dim_mask(action.shape[-1], shape.action_dim),
            play=row[is_play & (row + shape.horizon <= last)],
            demonstrations=row[~is_play],
            demonstration_odds=odds / odds.sum(),
            last=last,
        )

    def sample(self, rng: np.random.Generator, rig: int | None = None, width: float = 1.0) -> VirtualEmbodiment:
        """A random rig (or the given one) under a random perturbation of a width, with a random share of its play."""
        rig = int(rng.choice(self.rigs, p=self.odds)) if rig is None else rig
        play = self._play_of(rig)
        count = int(rng.integers((len(play) + 1) // 2, len(play) + 1))
        chosen = np.sort(rng.choice(play, size=count, replace=False))
        return self.embodiment(rig, self.draw(rng, self.cache.embodiments[rig], width), chosen)

    def play_batch(
        self, bodies: list[VirtualEmbodiment], each: int, rng: np.random.Generator, own: slice = slice(None)
    ) -> Transition:
        """`each` transitions of play of every body, body after body. The prompt is empty: state-free, task-free.

        With `own`, the samples of those bodies alone; what is drawn is the same.
        """
        rows = [rng.choice(body.play, size=each) for body in bodies]
        return self._batch(bodies[own], rows[own], with_next=True)

    def demonstration_batch(
        self, bodies: list[VirtualEmbodiment], each: int, rng: np.random.Generator, own: slice = slice(None)
    ) -> Transition:
        """`each` samples of demonstrations of every body, with the instruction as prompt; `own` as in `play_batch`."""
        rows = [rng.choice(body.demonstrations, size=each, p=body.demonstration_odds) for body in bodies]
        return self._batch(bodies[own], rows[own], with_next=False)

    def _canonical(self, frames: np.ndarray, perturbation: EmbodimentPerturbation) -> tuple[np.ndarray, np.ndarray]:
        state = self._column(frames, "observation.state", "observation.joints", perturbation.state_frame)
        return state, self._column(frames, "action", "action.joints", perturbation.action_frame)

    def _column(self, frames: np.ndarray, name: str, joints: str, frame: LinearFrame | JointFrame) -> np.ndarray:
        """Numbers to be seen through a frame. Rigs that are recorded in both spaces have a column of joints."""
        if isinstance(frame, JointFrame) and joints in self.cache.column_names:
            return _real_joints(np.asarray(self.cache.column(joints)[frames]), frame.joints)
        return np.asarray(self.cache.column(name)[frames])

    def _batch(self, bodies: list[VirtualEmbodiment], rows: list[np.ndarray], *, with_next: bool) -> Transition:
        steps = np.arange(self.shape.horizon)
        each = [len(r) for r in rows]
        chunks = [np.minimum(r[:, None] + steps, b.last[r][:, None]) for b, r in zip(bodies, rows, strict=True)]
        valid = np.concatenate([r[:, None] + steps <= b.last[r][:, None] for b, r in zip(bodies, rows, strict=True)])
        frames = np.concatenate([b.frames[r] for b, r in zip(bodies, rows, strict=True)])
        actions = torch.cat([b.action[torch.from_numpy(c)] for b, c in zip(bodies, chunks, strict=True)])
        state = torch.cat([b.state[torch.from_numpy(r)] for b, r in zip(bodies, rows, strict=True)])
        repeats = torch.tensor(each)
        state_mask = torch.stack([b.state_mask for b in bodies]).repeat_interleave(repeats, dim=0)
        action_mask = torch.stack([b.action_mask for b in bodies]).repeat_interleave(repeats, dim=0)
        recoloured, following = np.repeat([b.recoloured for b in bodies], each), None
        if with_next:
            step = self.shape.next_step
            after = np.concatenate([b.frames[r + step] for b, r in zip(bodies, rows, strict=True)])
            following = torch.from_numpy(self._seen(lambda features: features.next_features, after, recoloured))
        observation = self._observation(frames, recoloured, state, state_mask, prompted=not with_next)
        chunk = ActionChunk(actions, torch.from_numpy(valid), action_mask)
        return Transition(observation, chunk, following, referent=None if with_next else self._referent(frames))

    def _referent(self, frames: np.ndarray) -> Float[Tensor, "B 2"] | None:
        """Where the frozen tower sees, with the first camera, what the instruction names; None where the tasks name no
        keypoint."""
        index = self.referent[self.cache.task_index[self.cache.episode_of_frame[frames]]]
        if (index < 0).any():
            return None
        tokens = next(iter(self.features.tokens.values()))
        return torch.from_numpy(tokens[frames, index, :2]).float()

    def _seen(
        self, of: Callable[[FrameFeatures], np.ndarray], frames: np.ndarray, recoloured: Bool[np.ndarray, " B"]
    ) -> np.ndarray:
        """Features of frames, of some in other colours."""
        values = np.ascontiguousarray(of(self.features)[frames])
        if recoloured.any():
            if self.features.recoloured is None:
                raise ValueError("a body in other colours needs features of recoloured frames")
            values[recoloured] = of(self.features.recoloured)[frames[recoloured]]
        return values

    def _observation(
        self,
        frames: np.ndarray,
        recoloured: Bool[np.ndarray, " B"],
        state: Tensor,
        state_mask: Tensor,
        *,
        prompted: bool,
    ) -> Observation:
        tasks = torch.from_numpy(self.cache.task_index[self.cache.episode_of_frame[frames]])
        tokens, mask = self.tokens[tasks], self.token_mask[tasks]
        if not prompted:
            tokens, mask = tokens[:, :1], mask[:, :1]  # the begin token alone, as an empty prompt gives it
        longest = int(mask.sum(1).max())
        features = {
            camera: torch.from_numpy(self._seen(lambda f, c=camera: f.tokens[c], frames, recoloured)).float()
            for camera in self.features.tokens
        }
        present = {camera: torch.ones(len(frames), dtype=torch.bool) for camera in features}
        return Observation({}, present, state, tokens[:, :longest], mask[:, :longest], state_mask, features)


def _first_match(task: str, words: Sequence[str]) -> int:
    """Index of the first word that the task has; -1 for none."""
    return next((i for i, word in enumerate(words) if word in task.split()), -1)


def _real_joints(values: np.ndarray, joints: int) -> np.ndarray:
    """Joint columns are padded to the longest arm with the gripper last: drop the padding between."""
    return np.concatenate([values[..., :joints], values[..., -1:]], axis=-1)
