"""Virtual source embodiments: one rig's recordings, seen through a frame that is drawn when they are needed.

A rig (arm, gripper, camera, looks) is recorded once with canonical actions and states. Every rehearsal slot draws a
rig and a perturbation of its action and state spaces; together they are an embodiment that no other slot has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfalign.data.cache import EpisodeCache
from selfalign.data.changes import RemadeBody
from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.transforms import Tokenizer, dim_mask, pad_dims, tokenize_tasks
from selfalign.data.units import Units
from selfalign.types import ActionChunk, Observation, Transition

Perturbation = EmbodimentPerturbation | RemadeBody

DrawPerturbation = Callable[[np.random.Generator, Mapping[str, Any], float], Perturbation]
"""From a rig's description (a row of `meta/embodiments.json`) and a width between 0 and 1, a body that pretraining may
use: at 0 a canonical one, at 1 any."""


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """The frozen vision tower's output on every frame of a cache."""

    tokens: Mapping[str, np.ndarray]
    """Per camera, `[frames, N, D]`, float16."""
    next_features: Float[np.ndarray, "frames n F"]
    """Normalised next-observation features, float32."""
    looks: tuple["FrameFeatures", ...] = ()
    """The same of every frame as it looks otherwise: in other colours, or through turned cameras."""

    def fetch(self, request: "FrameRequest") -> "Seen":
        """What was seen at some frames.

        Raises:
            ValueError: another look is wanted, and there is none.
        """
        tokens = {
            camera: self._of(lambda features, c=camera: features.tokens[c], request.now, request.look)
            for camera in self.tokens
        }
        if request.later is None:
            return Seen(tokens, None)
        return Seen(tokens, self._of(lambda features: features.next_features, request.later, request.look))

    def _of(
        self, column: Callable[["FrameFeatures"], np.ndarray], frames: np.ndarray, look: Int[np.ndarray, " B"]
    ) -> Tensor:
        if look.max(initial=0) > len(self.looks):
            raise ValueError("a body that looks otherwise needs features of frames that look so")
        values = np.ascontiguousarray(column(self)[frames])
        for number in np.unique(look[look > 0]):
            rows = look == number
            values[rows] = column(self.looks[number - 1])[frames[rows]]
        return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class FrameRequest:
    """Frames of a cache that samples see."""

    now: Int[np.ndarray, " B"]
    later: Int[np.ndarray, " B"] | None
    """Those of the next observations; None: they are not needed."""
    look: Int[np.ndarray, " B"]
    """How each is seen: 0 as it was recorded, otherwise in one of the other looks, from 1."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The features of the frames of a request, in the types in which they are stored."""

    tokens: Mapping[str, Tensor]
    """Per camera, `[B, N, D]`."""
    following: Float[Tensor, "B n F"] | None


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
    unit_width: float = 0.0
    """How far the units of bodies may lie from those of their play (`Units`); 0: they are those."""

    def __post_init__(self) -> None:
        if self.trajectories is not None and self.trajectories < 1:
            raise ValueError(f"a rig needs at least 1 trajectory of play, got {self.trajectories}")
        if not 0 <= self.unit_width <= 1:
            raise ValueError(f"the width of units lies between 0 and 1, got {self.unit_width}")


@dataclass(frozen=True, eq=False)
class VirtualEmbodiment:
    """An embodiment in the middle of its life: its numbers, normalised with its own statistics and padded."""

    rig: int
    perturbation: Perturbation
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
    look: int = 0
    """What its cameras show: 0 what was recorded, otherwise one of the other looks of the features, from 1."""
    units: Units | None = None
    """In which its numbers are, after normalisation; None: as they are then."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of some bodies, body after body: where they stand, without what was seen there."""

    bodies: Sequence[VirtualEmbodiment]
    rows: Sequence[Int[np.ndarray, " n"]]
    """Of each body's samples, into its arrays."""
    request: FrameRequest


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
        any_look: bool = False,
    ):
        """Args beyond the fields:

        rigs: which of the cache's embodiments to use; None: all.
        rig_odds: how often each of the cache's embodiments is drawn, relative to the others; None: all alike.
        task_weights: how often frames of tasks that begin with a word are drawn, relative to others (1).
        keypoint_words: the words for the first keypoints of the tower; where a task has one of them, its keypoint is
            what the instruction refers to.
        play: what serves as play.
        any_look: bodies are drawn with any look of the features; otherwise as they were recorded.
        """
        self.play, self.any_look = play, any_look
        self.task_weight = np.array([(task_weights or {}).get(task.split(" ")[0], 1.0) for task in cache.tasks])
        self.referent = np.array([_first_match(task, keypoint_words) for task in cache.tasks])
        self.cache, self.features, self.shape, self.draw = cache, features, shape, draw
        self.rigs = np.unique(cache.embodiment_index) if rigs is None else np.asarray(rigs)
        self.odds = None if rig_odds is None else rig_odds[self.rigs] / rig_odds[self.rigs].sum()
        self.tokens, self.token_mask = tokenize_tasks(cache.tasks, tokenizer)
        self.play_tokens, self.play_token_mask = tokenizer.encode([""])
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
        self,
        rig: int,
        perturbation: Perturbation,
        play_episodes: Int[np.ndarray, " E"] | None = None,
        units: Units | None = None,
    ) -> VirtualEmbodiment:
        """A rig's recordings in the terms of a perturbed body, normalised by (some of) its play; then in other units,
        where some are given."""
        cache, shape = self.cache, self.shape
        play = self._play_of(rig) if play_episodes is None else play_episodes
        episodes = np.concatenate([play, cache.episodes_of(rig, False)])
        spans = [cache.episode_starts[e] + np.arange(cache.episode_lengths[e]) for e in episodes]
        frames = np.concatenate(spans)
        lengths = np.array([len(span) for span in spans])
        if isinstance(perturbation, RemadeBody):
            remade = _remade(perturbation, *self._canonical(frames, perturbation.frames), lengths)
            state, action, kept, lengths = remade
            frames = frames[kept]
        else:
            state, action = perturbation.apply(*self._canonical(frames, perturbation))
        ends = np.cumsum(lengths) - 1
        last, row = np.repeat(ends, lengths), np.arange(len(frames))
        # By place and not by the cache's flag: demonstrations may stand in for play, and then are there twice.
        is_play = np.repeat(np.arange(len(episodes)) < len(play), lengths)

        odds = self.task_weight[np.repeat(cache.task_index[episodes], lengths)[~is_play]]
        stats = NormStats.from_arrays(state[is_play], action[is_play])
        state, action = stats.normalize_state(state), stats.normalize_action(action)
        if units is not None:
            state, action = units.applied("state", state), units.applied("action", action)
        return VirtualEmbodiment(
            rig=rig,
            perturbation=perturbation,
            play_episodes=play,
            stats=stats,
            frames=frames,
            state=torch.from_numpy(pad_dims(state, shape.state_dim)).float(),
            action=torch.from_numpy(pad_dims(action, shape.action_dim)).float(),
            state_mask=dim_mask(state.shape[-1], shape.state_dim),
            action_mask=dim_mask(action.shape[-1], shape.action_dim),
            play=row[is_play & (row + shape.horizon <= last)],
            demonstrations=row[~is_play],
            demonstration_odds=odds / odds.sum(),
            last=last,
            units=units,
        )

    def sample(self, rng: np.random.Generator, rig: int | None = None, width: float = 1.0) -> VirtualEmbodiment:
        """A random rig (or the given one) under a random perturbation of a width, with a random share of its play. Of
        other looks, too: the wider, the more often."""
        rig = int(rng.choice(self.rigs, p=self.odds)) if rig is None else rig
        play = self._play_of(rig)
        play = play[self.cache.episode_lengths[play] > self.shape.horizon]  # a share of short ones has no transition
        count = int(rng.integers((len(play) + 1) // 2, len(play) + 1))
        chosen = np.sort(rng.choice(play, size=count, replace=False))
        perturbation, wide = self.draw(rng, self.cache.embodiments[rig], width), self.play.unit_width * width
        units = Units(int(rng.integers(2**31)), wide) if self.play.unit_width else None
        body = self.embodiment(rig, perturbation, chosen, units)
        if self.any_look and rng.uniform() < width:
            return replace(body, look=int(rng.integers(len(self.features.looks) + 1)))
        return body

    def play_samples(
        self, bodies: Sequence[VirtualEmbodiment], each: int, rng: np.random.Generator, own: slice = slice(None)
    ) -> Samples:
        """`each` transitions of play of every body.

        With `own`, the samples of those bodies alone; what is drawn is the same.
        """
        rows = [rng.choice(body.play, size=each) for body in bodies]
        return self._samples(bodies[own], rows[own], with_next=True)

    def demonstration_samples(
        self, bodies: Sequence[VirtualEmbodiment], each: int, rng: np.random.Generator, own: slice = slice(None)
    ) -> Samples:
        """`each` samples of demonstrations of every body; `own` as in `play_samples`."""
        rows = [rng.choice(body.demonstrations, size=each, p=body.demonstration_odds) for body in bodies]
        return self._samples(bodies[own], rows[own], with_next=False)

    def play_batch(self, bodies: Sequence[VirtualEmbodiment], each: int, rng: np.random.Generator) -> Transition:
        """Samples of play and what was seen there."""
        samples = self.play_samples(bodies, each, rng)
        return self.batch(samples, self.features.fetch(samples.request))

    def demonstration_batch(
        self, bodies: Sequence[VirtualEmbodiment], each: int, rng: np.random.Generator
    ) -> Transition:
        """Samples of demonstrations and what was seen there."""
        samples = self.demonstration_samples(bodies, each, rng)
        return self.batch(samples, self.features.fetch(samples.request))

    def _canonical(self, frames: np.ndarray, perturbation: EmbodimentPerturbation) -> tuple[np.ndarray, np.ndarray]:
        state = self._column(frames, "observation.state", "observation.joints", perturbation.state_frame)
        return state, self._column(frames, "action", "action.joints", perturbation.action_frame)

    def _column(self, frames: np.ndarray, name: str, joints: str, frame: LinearFrame | JointFrame) -> np.ndarray:
        """Numbers to be seen through a frame. Rigs that are recorded in both spaces have a column of joints."""
        if isinstance(frame, JointFrame) and joints in self.cache.column_names:
            return _real_joints(np.asarray(self.cache.column(joints)[frames]), frame.joints)
        return np.asarray(self.cache.column(name)[frames])

    def _samples(self, bodies: Sequence[VirtualEmbodiment], rows: list[np.ndarray], *, with_next: bool) -> Samples:
        later = None
        if with_next:
            later = np.concatenate([b.frames[r + self.shape.next_step] for b, r in zip(bodies, rows, strict=True)])
        now = np.concatenate([b.frames[r] for b, r in zip(bodies, rows, strict=True)])
        look = np.repeat([b.look for b in bodies], [len(r) for r in rows])
        return Samples(bodies, rows, FrameRequest(now, later, look))

    def batch(self, samples: Samples, seen: Seen) -> Transition:
        """Samples with what was seen there. The prompt is the instruction; play has none: state-free, task-free."""
        bodies, rows, frames = samples.bodies, samples.rows, samples.request.now
        steps, is_play = np.arange(self.shape.horizon), samples.request.later is not None
        chunks = [np.minimum(r[:, None] + steps, b.last[r][:, None]) for b, r in zip(bodies, rows, strict=True)]
        valid = np.concatenate([r[:, None] + steps <= b.last[r][:, None] for b, r in zip(bodies, rows, strict=True)])
        actions = torch.cat([b.action[torch.from_numpy(c)] for b, c in zip(bodies, chunks, strict=True)])
        state = torch.cat([b.state[torch.from_numpy(r)] for b, r in zip(bodies, rows, strict=True)])
        repeats = torch.tensor([len(r) for r in rows])
        state_mask = torch.stack([b.state_mask for b in bodies]).repeat_interleave(repeats, dim=0)
        action_mask = torch.stack([b.action_mask for b in bodies]).repeat_interleave(repeats, dim=0)
        tokens, mask = self._prompts(frames, empty=is_play)
        features = {camera: values.float() for camera, values in seen.tokens.items()}
        present = {camera: torch.ones(len(frames), dtype=torch.bool) for camera in features}
        observation = Observation({}, present, state, tokens, mask, state_mask, features)
        chunk = ActionChunk(actions, torch.from_numpy(valid), action_mask)
        return Transition(
            observation, chunk, seen.following, referent=None if is_play else self._referent(frames, seen)
        )

    def _referent(self, frames: Int[np.ndarray, " B"], seen: Seen) -> Float[Tensor, "B 2"] | None:
        """Where the frozen tower sees, with the first camera, what the instruction names; None where the tasks name no
        keypoint."""
        index = self.referent[self.cache.task_index[self.cache.episode_of_frame[frames]]]
        if (index < 0).any():
            return None
        tokens = next(iter(seen.tokens.values()))
        return tokens[torch.arange(len(frames)), torch.from_numpy(index), :2].float()

    def _prompts(self, frames: Int[np.ndarray, " B"], *, empty: bool) -> tuple[Tensor, Tensor]:
        if empty:  # as `Policy.transitions` gives it: PaliGemma's has a piece after the begin token
            return self.play_tokens.repeat(len(frames), 1), self.play_token_mask.repeat(len(frames), 1)
        tasks = torch.from_numpy(self.cache.task_index[self.cache.episode_of_frame[frames]])
        tokens, mask = self.tokens[tasks], self.token_mask[tasks]
        longest = int(mask.sum(1).max())
        return tokens[:, :longest], mask[:, :longest]


def _remade(
    body: RemadeBody, state: np.ndarray, action: np.ndarray, lengths: Int[np.ndarray, " E"]
) -> tuple[np.ndarray, np.ndarray, Int[np.ndarray, " K"], Int[np.ndarray, " E"]]:
    """States and actions of episodes end to end, changed one by one; the rows that are left, and how many of each."""
    change, starts = body.changes, np.cumsum(lengths) - lengths
    made = []
    for start, length in zip(starts, lengths, strict=True):
        rows = np.arange(start, start + length)
        made.append(change.apply(Episode({}, state[rows], action[rows], extra={"row": rows})))
    return (
        np.concatenate([episode.state for episode in made]),
        np.concatenate([episode.action for episode in made]),
        np.concatenate([episode.extra["row"] for episode in made]),
        np.array([len(episode) for episode in made]),
    )


def _first_match(task: str, words: Sequence[str]) -> int:
    """Index of the first word that the task has; -1 for none."""
    return next((i for i, word in enumerate(words) if word in task.split()), -1)


def _real_joints(values: np.ndarray, joints: int) -> np.ndarray:
    """Joint columns are padded to the longest arm with the gripper last: drop the padding between."""
    return np.concatenate([values[..., :joints], values[..., -1:]], axis=-1)
