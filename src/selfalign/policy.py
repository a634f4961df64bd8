"""`Policy`: the model with what surrounds it on a robot: units, pixels, words, statistics, and its files.

    raw observation --1 repack--> --2 robot's steps--> --3 normalise--> --4 resize, pad, tokenise--> Observation
    robot units <----------------- 2 undone <---------- 3 undone <------ 4 unpad ------------------- actions

Stages 1 and 2 are the robot's (`selfalign.embodiments`); without one, observations come in LeRobot's names and in the
model's conventions. States and actions are normalised with the statistics of the robot's own play, which travel in its
context.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from selfalign.acting import Acting
from selfalign.calibration import Calibration
from selfalign.data.episodes import IMAGE_PREFIX, Episode, Pairs, SparseEpisode
from selfalign.data.features import check_size, stored_features
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.data.statistics import norm_stats
from selfalign.data.transforms import Tokenizer, dim_mask, pad_dims, pixels_to_model, resize_with_pad, unpad_dims
from selfalign.embodiments import Embodiment
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.observations import STATE, read_state, read_tasks
from selfalign.settings import AlignSettings
from selfalign.types import ActionChunk, Observation, TensorStruct, Transition

TOWER_BATCH = 64
"""Frames that the vision tower reads at once."""
UNKNOWN_DISPLACEMENTS = (
    "the policy acts with a speed, which does nothing here: nobody says which numbers of an action are displacements. "
    "Align to play whose description says it (docs/acting.md), give a robot, or act with speed 1"
)
Sample = TypeVar("Sample", bound=TensorStruct)


@dataclass(frozen=True, eq=False)
class Policy:
    """A model that reads a robot's observations and gives a robot's actions.

    Raw observations are mappings in LeRobot's names: `observation.images.<camera>` uint8 [H, W, 3],
    `observation.state` float [S] and `task` str; or all of them with a leading batch axis (`task` then may be a list).
    With a `robot`, they may be in the robot's own names, too.
    """

    model: VLA
    tokenizer: Tokenizer
    settings: AlignSettings = field(default_factory=AlignSettings)
    """How `selfalign.align` fits contexts to this model unless told otherwise."""
    stats: NormStats | None = None
    """Of the robot that the checkpoint was trained on, where it says so: what `act` uses without context."""
    robot: Embodiment | None = None
    """Names and conventions of the robot; None: LeRobot's names, and numbers that the model takes as they are."""
    calibration: Calibration | None = None
    """What a held-out play loss of this model is worth, where the checkpoint says so."""
    acting: Acting = Acting()
    """Speed and temperature that `act` takes unless told otherwise."""
    _fingerprint: dict[tuple[tuple[int, int], ...], str] = field(default_factory=dict, init=False, repr=False)
    """By the versions of all weights. Fused optimisers do not count those up: who trains makes new policies."""

    @classmethod
    def from_model(cls, model: VLA, settings: AlignSettings | None = None) -> "Policy":
        """A policy around a bare model, with the byte tokenizer."""
        return cls(
            model, ByteTokenizer(model.config.max_token_len, model.config.prompt_merges), settings or AlignSettings()
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """The model's fingerprint; hashed again only when a weight has changed."""
        versions = tuple((id(t), t._version) for t in self.model.state_dict(keep_vars=True).values())
        if versions not in self._fingerprint:
            self._fingerprint.clear()
            self._fingerprint[versions] = self.model.fingerprint()
        return self._fingerprint[versions]

    @property
    def converted_by(self) -> str:
        """Name of the robot whose steps turn its numbers into the model's; "": they are taken as they are."""
        return self.robot.name if self.robot is not None and self.robot.steps else ""

    def acting_at(self, speed: float | None = None, temperature: float | None = None) -> "Policy":
        """The same policy with another speed or temperature; None leaves its own. Where that changes anything, it has
        no calibration: that was of how it acted before.

        Raises:
            ValueError: a speed or temperature that nothing acts with.
        """
        acting = self.acting.but(speed, temperature)
        return self if acting == self.acting else dataclasses.replace(self, acting=acting, calibration=None)

    # ---- acting ----------------------------------------------------------------------------------------------------

    def act(
        self,
        observation: Mapping[str, Any],
        context: EmbodimentContext | Sequence[EmbodimentContext] | None = None,
        *,
        noise: Tensor | np.ndarray | None = None,
        num_steps: int = 10,
        stats: NormStats | None = None,
        acting: Acting | None = None,
    ) -> Float[np.ndarray, "*B H A"]:
        """The next H actions in robot units: float32 [H, A], or [B, H, A] for a batch of observations.

        Args:
            observation: one raw observation, or a batch of them.
            context: of the robot; one for each robot of the batch as a list (or one batched context); None reads the
                prior W0.
            noise: [H, action_dim] or [B, H, action_dim] in the model's dimensions, which the temperature multiplies;
                drawn where None.
            num_steps: Euler steps.
            stats: normalisation to use instead of the context's own; with neither, the checkpoint's.
            acting: speed and temperature; None: the checkpoint's own.

        Raises:
            ValueError: an observation that the model cannot read, missing statistics, or a context of another model;
                the message names the key.
        """
        contexts, single = self._contexts(context)
        own = [self.stats] if self.stats is not None else []
        statistics = [stats] if stats is not None else [_stats_of(c) for c in contexts] or own
        statistics = [self.with_displacements(one) for one in statistics]
        raw = self.repack(observation)
        batch, batched = self._observation(raw, statistics)
        size = batch.batch_size
        if contexts and single is not None and single.batched and single.W1[0].shape[0] != size:
            raise ValueError(f"{single.W1[0].shape[0]} contexts for a batch of {size} observations; give one for each")
        acting = self.acting if acting is None else acting
        if acting.speed != 1 and any(one.displacements is None for one in statistics):
            warnings.warn(UNKNOWN_DISPLACEMENTS, stacklevel=2)
        shape = (size, self.model.config.action_horizon, self.model.config.action_dim)
        given = self._noise(noise, shape, batched)
        start = acting.temperature * (self.model.draw_noise(batch) if given is None else given)
        actions = self.model.sample_actions(batch, single, noise=start, num_steps=num_steps)
        rows = actions.float().cpu().numpy()
        each = zip(rows, _each(statistics, size, "statistics"), np.atleast_2d(raw[STATE]), strict=True)
        result = np.stack([self.in_robot_units(row, s, state, acting.speed) for row, s, state in each])
        return result if batched else result[0]

    def in_robot_units(
        self, chunk: Float[np.ndarray, "H D"], stats: NormStats, state: Float[np.ndarray, " S"], speed: float
    ) -> Float[np.ndarray, "H A"]:
        """A chunk of the model's actions as the robot takes it, float32: stages 4, 3 and 2 undone.

        Args:
            stats: of the robot.
            state: at the chunk's start, as `repack` gives it.
            speed: what displacements are multiplied by.

        Raises:
            ValueError: the chunk has NaN or infinite numbers.
        """
        result = stats.unnormalize_action(unpad_dims(chunk, stats.action_dim), speed).astype(np.float32)
        if self.robot is not None:
            undone = self.robot.inverse(state[None], result[None]).actions
            assert undone is not None  # they were given
            result = undone[0]
        if not np.isfinite(result).all():
            raise ValueError("the model gave NaN or infinite actions: are its weights and the context whole?")
        return result

    def observation(self, observation: Mapping[str, Any], stats: NormStats) -> Observation:
        """A raw observation (or a batch) as the model reads it: normalised, resized, padded, tokenised; always batched.

        Raises:
            ValueError: a key is missing or unknown, or a value has the wrong type, shape or a NaN; the message names
                the key.
        """
        return self.repacked_observation(self.repack(observation), stats)

    def repacked_observation(self, observation: Mapping[str, Any], stats: NormStats) -> Observation:
        """`observation`, of what `repack` gave."""
        return self._observation(observation, [stats])[0]

    def repack(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """A raw observation in LeRobot's names, its states in the model's conventions (stages 1 and 2)."""
        if self.robot is None:
            return raw
        named = self.robot.repack(raw)
        return {**named, STATE: self.robot.forward(named[STATE]).state}

    def _observation(self, raw: Mapping[str, Any], stats: Sequence[NormStats]) -> tuple[Observation, bool]:
        state = read_state(raw, stats)
        batched, state = state.ndim == 2, np.atleast_2d(state)
        size, config = len(state), self.model.config
        images = {camera: self._read_image(raw, camera, size, batched) for camera in self._cameras(raw)}
        normalised = np.stack([s.normalize_state(x) for s, x in zip(_each(stats, size, "statistics"), state)])
        told = list(normalised) if self.tokenizer.reads_state else None
        tokens, token_mask = self.tokenizer.encode(read_tasks(raw, size), told)
        present = {camera: torch.full((size,), camera in images) for camera in config.cameras}
        side = config.image_size
        absent = {c: torch.zeros(size, 3, side, side) for c in config.cameras if c not in images}
        result = Observation(
            images={**images, **absent},
            image_masks=present,
            state=torch.from_numpy(pad_dims(normalised, config.state_dim)),
            tokens=tokens,
            token_mask=token_mask,
            state_mask=dim_mask(state.shape[1], config.state_dim).expand(size, -1),
        )
        return result.to(self.device), batched

    def _cameras(self, raw: Mapping[str, Any]) -> list[str]:
        """The cameras of a raw observation: at least one that the model has, and none that it does not know."""
        given = [key.removeprefix(IMAGE_PREFIX) for key in raw if key.startswith(IMAGE_PREFIX)]
        known = self.model.config.cameras
        unknown = sorted(set(given) - set(known))
        if unknown or not given:
            found = f"has unknown {', '.join(IMAGE_PREFIX + c for c in unknown)}" if unknown else "has no image"
            raise ValueError(f"the observation {found}; the model reads {', '.join(IMAGE_PREFIX + c for c in known)}")
        return given

    def _read_image(self, raw: Mapping[str, Any], camera: str, size: int, batched: bool) -> Tensor:
        key = IMAGE_PREFIX + camera
        frames = np.asarray(raw[key])
        if frames.dtype != np.uint8 or frames.ndim != 3 + batched or frames.shape[-1] != 3 or 0 in frames.shape:
            shape = "[B, H, W, 3]" if batched else "[H, W, 3]"
            raise ValueError(f"{key} must be uint8 {shape}, got {frames.dtype} {list(frames.shape)}")
        frames = frames if batched else frames[None]
        if len(frames) != size:
            raise ValueError(f"{key} has {len(frames)} images for {size} states")
        return self._pixels(frames)

    def _pixels(self, frames: UInt8[np.ndarray, "B h w 3"]) -> Float[Tensor, "B 3 S S"]:
        side = self.model.config.image_size
        return pixels_to_model(resize_with_pad(frames, side, side))

    def _noise(self, noise: Tensor | np.ndarray | None, shape: tuple[int, int, int], batched: bool) -> Tensor | None:
        if noise is None:
            return None
        tensor = torch.as_tensor(noise, dtype=torch.float32, device=self.device)
        tensor = tensor if batched or tensor.dim() == 3 else tensor[None]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"the noise must have shape {list(shape)}, got {list(tensor.shape)}")
        return tensor

    # ---- contexts --------------------------------------------------------------------------------------------------

    def load_context(self, path: str | Path) -> EmbodimentContext:
        """Reads a context file of this model, onto its device.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, or fitted to another model.
        """
        context = EmbodimentContext.load(path, fingerprint=self.fingerprint())
        self.check_context(context)
        return context.to(self.device)

    def check_context(self, context: EmbodimentContext) -> None:
        """Raises `ValueError` unless the context belongs to this model, and its body's numbers come as they did."""
        if context.info.fingerprint not in ("", self.fingerprint()):
            raise ValueError(
                f"the context of {context.info.embodiment!r} was fitted to model {context.info.fingerprint}, this "
                f"model is {self.fingerprint()}: a context means nothing to another model; align this model to the "
                "body's play"
            )
        if context.info.robot not in (None, self.converted_by):
            theirs, ours = (
                f"went through the steps of the robot {name!r}" if name else "were taken as they came"
                for name in (context.info.robot, self.converted_by)
            )
            raise ValueError(
                f"the numbers of {context.info.embodiment!r} {theirs} when its context was fitted, and here they "
                f"{ours}: load the policy with the same robot as then (`robot=`, `--robot`), or align again"
            )
        own = [tuple(t.shape) for t in self.model.prior().tensors]
        theirs = [tuple(t.shape[1:] if context.batched else t.shape) for t in context.tensors]
        if own != theirs:
            raise ValueError(f"the context has tensors of shapes {theirs}, this model's have {own}")

    def _contexts(
        self, context: EmbodimentContext | Sequence[EmbodimentContext] | None
    ) -> tuple[list[EmbodimentContext], EmbodimentContext | None]:
        """(the contexts that were given, the one that the model takes)."""
        if context is None:
            return [], None
        given = [context] if isinstance(context, EmbodimentContext) else list(context)
        contexts = [item.to(self.device) for item in given]  # some may have been fitted there, others read
        if not contexts:
            raise ValueError("an empty list of contexts; give one for each observation, or None for the prior")
        for item in contexts:
            self.check_context(item)
        merged = contexts[0] if isinstance(context, EmbodimentContext) else EmbodimentContext.stack(contexts)
        return contexts, merged

    # ---- play ------------------------------------------------------------------------------------------------------

    def repack_play(self, play: Play) -> Play:
        """Play with the robot's cameras under the model's names; those that the model does not see are dropped.

        Raises:
            ValueError: a camera that the robot does not have, or other features than the model was trained with.
        """
        if play.features != self.settings.features:
            told = [
                f"the stored features {name}" if name else "the tower's own"
                for name in (self.settings.features, play.features)
            ]
            raise ValueError(
                f"this model knows next observations by {told[0]}, {play.name} has {told[1]}: give features that "
                "`selfalign features --like` made as those were, or none"
            )
        if self.robot is None:
            return play
        picked = self.robot.pick_cameras(play.cameras)
        episodes = (
            dataclasses.replace(e, images={camera: e.images[name] for camera, name in picked.items()})
            for e in play.episodes
        )
        return dataclasses.replace(play, episodes=tuple(episodes))

    def play_stats(self, play: Play) -> NormStats:
        """Statistics of play as this policy reads it: after the robot's steps, over the model's horizon."""
        if self.robot is None:
            return play.stats()
        if any(isinstance(episode, SparseEpisode) for episode in play.episodes):
            raise ValueError(f"{play.name} was not seen at every step: statistics of {self.robot.name} need it")
        numbers = ((episode.state, episode.action) for episode in play.episodes)
        stats = norm_stats(numbers, robot=self.robot, horizon=self.model.config.action_horizon)
        stats.warn_near_constant(self.robot.state_names, self.robot.action_names)
        return stats

    def with_displacements(self, stats: NormStats, play: Play | None = None) -> NormStats:
        """Statistics with which of their numbers are displacements, where they do not say it and the robot does, or
        the description of the play."""
        told = None if play is None else play.displacements
        moved = told if self.robot is None else self.robot.displacements or told
        if stats.displacements is not None or moved is None:
            return stats
        padded = (*moved, *(False for _ in range(stats.action_dim)))[: stats.action_dim]
        return dataclasses.replace(stats, displacements=padded)

    def transitions(self, play: Play | Iterable[Episode], stats: NormStats, *, stride: int = 1) -> Transition:
        """All (o_t, a_{t:t+H}, o_{t+H}) that lie within an episode, ready for the prefix.

        The frozen vision tower reads each frame once; its tokens stand in `observation.image_features`, and the
        normalised summaries of o_{t+H} in `next_features`. The prompt is empty: alignment is state-free and task-free.

        Args:
            play: episodes (see `repack_play`); those without two moments seen H steps apart give nothing.
            stats: of this robot (see `play_stats`).
            stride: keep every so many-th start.

        Raises:
            ValueError: no episode is long enough, or it does not fit the model.
        """
        play = play if isinstance(play, Play) else Play.from_episodes(play)
        config = self.model.config
        horizon = config.action_horizon
        play.require(horizon, cameras=config.cameras, state_dim=config.state_dim, action_dim=config.action_dim)
        parts = [self._episode_transitions(e, stats, stride) for e in play.episodes if len(e.pairs(horizon))]
        return concatenate(parts)

    @torch.no_grad()
    def _episode_transitions(self, episode: Episode, stats: NormStats, stride: int) -> Transition:
        config = self.model.config
        pairs = self.pairs(episode, stride)
        frames, where = np.unique(np.concatenate([pairs.now, pairs.later]), return_inverse=True)
        tower = self._tower(episode, frames)
        now, later = torch.from_numpy(where[: len(pairs)]), torch.from_numpy(where[len(pairs) :])
        state, actions = self._numbers(episode, stats, pairs)
        tokens, token_mask = (x.expand(len(pairs), -1) for x in self.tokenizer.encode([""]))
        present = {c: torch.full((len(pairs),), c in episode.images) for c in config.cameras}
        following = self._stored_features(episode, pairs.step + config.next_step)
        if following is None:
            seen = self._pictures(episode, pairs.later) if config.next_pixels else None
            following = self.model.next_features(seen or {c: x[later.to(x.device)] for c, x in tower.items()})
        observation = Observation(
            images={},
            image_masks=present,
            state=state.values,
            tokens=tokens,
            token_mask=token_mask,
            state_mask=state.mask,
            image_features={c: x[now.to(x.device)] for c, x in tower.items()},
        ).to(self.device)
        chunk = ActionChunk(actions.values, dim_mask=actions.mask).to(self.device)
        return Transition(observation, chunk, following)

    def pairs(self, episode: Episode, stride: int = 1) -> Pairs:
        """Every so many-th transition over the horizon, their second moment that of the model's next observation."""
        config = self.model.config
        pairs = episode.pairs(config.action_horizon, stride)
        if config.next_step == config.action_horizon:
            return pairs
        if isinstance(episode, SparseEpisode):
            raise ValueError(
                f"this model is told what is seen {config.next_step} steps later; the episode was not seen then"
            )
        return dataclasses.replace(pairs, later=pairs.now + config.next_step)

    def _pictures(self, episode: Episode, frames: np.ndarray) -> dict[str, Tensor]:
        """What each camera of the model sees in some frames; black where the episode has no such camera."""
        side = self.model.config.image_size
        seen = {
            c: self._pixels(episode.images[c][frames])
            if c in episode.images
            else torch.zeros(len(frames), 3, side, side)
            for c in self.model.config.cameras
        }
        return {camera: pixels.to(self.device) for camera, pixels in seen.items()}

    def _stored_features(self, episode: Episode, frames: np.ndarray) -> Tensor | None:
        """Features of some frames that the episode carries, normalised; None where it carries none."""
        stored = stored_features(episode.extra, self.model.config.cameras)
        if stored is None:
            return None
        check_size(stored.shape[1:], self.model)
        values = torch.from_numpy(stored[frames]).float().to(self.device)
        return (values - self.model.feature_mean) / self.model.feature_std

    def _numbers(self, episode: Episode, stats: NormStats, pairs: Pairs) -> tuple["PaddedNumbers", "PaddedNumbers"]:
        """States [B, S] and chunks [B, H, A] of an episode's transitions, normalised and padded."""
        config = self.model.config
        state = episode.state[pairs.now]
        chunks = episode.action[pairs.step[:, None] + np.arange(config.action_horizon)]
        if self.robot is not None:
            state, chunks = self.robot.forward(state, chunks)
            assert chunks is not None
        return (
            PaddedNumbers.of(stats.normalize_state(state), config.state_dim),
            PaddedNumbers.of(stats.normalize_action(chunks), config.action_dim),
        )

    def _tower(self, episode: Episode, frames: np.ndarray) -> dict[str, Tensor]:
        """The frozen tower's tokens of some frames of an episode, per camera of the model."""
        chunks: dict[str, list[Tensor]] = {camera: [] for camera in self.model.config.cameras}
        for rows in np.array_split(frames, -(-len(frames) // TOWER_BATCH)):
            for camera, tokens in self.model.image_features(self._pictures(episode, rows)).items():
                chunks[camera].append(tokens)
        return {camera: torch.cat(parts) for camera, parts in chunks.items()}


@dataclass(frozen=True)
class PaddedNumbers:
    """Normalised numbers in the model's dimensions, float32."""

    values: Float[Tensor, "B *steps D"]
    mask: torch.Tensor
    """[B, D], True on the robot's own dimensions."""

    @classmethod
    def of(cls, values: Float[np.ndarray, "B *steps d"], dim: int) -> "PaddedNumbers":
        padded = torch.from_numpy(pad_dims(values, dim).astype(np.float32))
        return cls(padded, dim_mask(values.shape[-1], dim).expand(len(values), -1))


def concatenate(parts: Sequence[Sample]) -> Sample:
    """Batches of transitions or observations, one after another; all must have the same optional fields."""
    if len(parts) == 1:
        return parts[0]

    def joined(*values: Any) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(values)
        if isinstance(first, Mapping):
            return {key: joined(*(v[key] for v in values)) for key in first}
        if dataclasses.is_dataclass(first) and not isinstance(first, type):
            fields = dataclasses.fields(first)
            return type(first)(**{f.name: joined(*(getattr(v, f.name) for v in values)) for f in fields})
        return first

    return joined(*parts)


def _stats_of(context: EmbodimentContext) -> NormStats:
    if context.info.norm_stats is None:
        raise ValueError(
            f"the context {context.info.embodiment!r} carries no normalisation statistics: give stats=play.stats(), or "
            "a context that `align` made"
        )
    return NormStats.from_dict(context.info.norm_stats)


def _each(items: Sequence[NormStats], size: int, what: str) -> list[NormStats]:
    """One item for each of `size` samples."""
    if len(items) not in (1, size):
        raise ValueError(f"{len(items)} {what} for a batch of {size} observations; give one, or one for each")
    return list(items) * (size // len(items))
