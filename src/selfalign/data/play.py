"""Play: unlabelled motion of one robot, checked before anything is fitted to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import Episode
from selfalign.data.normalize import Mode, NormStats
from selfalign.data.sources import SourceData


@dataclass(frozen=True, eq=False)
class Play:
    """Episodes of one embodiment, all with the same cameras and dimensions and without NaN.

    Task words are not read: play is fitted without them.
    """

    episodes: tuple[Episode, ...]
    embodiment: Mapping[str, Any]
    """Description of the robot, as its data set gives it."""
    name: str = "play"
    """Where it comes from, for messages."""
    features: str | None = None
    """Name of the stored features that its episodes carry, if they do (see `data.features`)."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        embodiment_index: int | None = None,
        *,
        strict: bool = True,
        cameras: Mapping[str, str] | None = None,
        features: str | Path | None = None,
    ) -> Self:
        """Reads play from a data set.

        Args:
            path: the data set, as `SourceData.open` takes it: a path or `lerobot:PATH`.
            embodiment_index: which robot, where the data set has several.
            strict: False leaves broken episodes out with a warning that counts them.
            cameras: camera of the model -> the data set's camera that shows it; None: all, as they are called.
            features: folder that `selfalign features` wrote for these data.

        Raises:
            FileNotFoundError: no data set at `path`.
            ValueError: a damaged file; several robots and none chosen; or what `from_episodes` refuses.
        """
        source = SourceData.open(path, strict=strict, cameras=cameras, features=features)
        present = sorted({ref.embodiment_index for ref in source.refs})
        if embodiment_index is None and len(present) > 1:
            raise ValueError(f"{path} holds {len(present)} robots {present}; choose one with `embodiment_index`")
        chosen = present[0] if embodiment_index is None else embodiment_index
        if chosen not in present:
            raise ValueError(f"{path} holds no episode of robot {chosen}, only of {present}")
        picks = [i for i, ref in enumerate(source.refs) if ref.embodiment_index == chosen]
        play = cls.from_episodes(source.episodes(picks), source.embodiments[chosen], str(path))
        return replace(play, features=None if source.features is None else source.features.name)

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Episode], embodiment: Mapping[str, Any] | None = None, name: str = "play"
    ) -> Self:
        """Checks episodes and takes them as play.

        Raises:
            ValueError: no episode; episodes whose cameras, image sizes, dimensions or rates differ; NaN or infinity
                (the message names episode, frame and column).
        """
        play = cls(tuple(episodes), dict(embodiment or {}), name)
        if not play.episodes:
            raise ValueError(f"{name} holds no episode")
        for index, episode in enumerate(play.episodes):
            check_alike(play.episodes[0], episode, index, name)
            check_finite(episode, index, name)
        return play

    def __len__(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.episodes[0].images)

    @property
    def state_dim(self) -> int:
        return self.episodes[0].state.shape[1]

    @property
    def action_dim(self) -> int:
        return self.episodes[0].action.shape[1]

    @property
    def num_frames(self) -> int:
        return sum(len(episode) for episode in self.episodes)

    @property
    def seconds(self) -> float:
        """How long the robot moved."""
        return sum(len(episode) / episode.fps for episode in self.episodes)

    def state(self) -> Float[np.ndarray, "N S"]:
        """States of all frames."""
        return np.concatenate([episode.state for episode in self.episodes])

    def action(self) -> Float[np.ndarray, "N A"]:
        """Actions of all frames."""
        return np.concatenate([episode.action for episode in self.episodes])

    def stats(self, mode: Mode = "zscore") -> NormStats:
        """This robot's own statistics."""
        stats = NormStats.from_arrays(self.state(), self.action(), mode)
        return replace(stats, displacements=self.displacements)

    @property
    def displacements(self) -> tuple[bool, ...] | None:
        """Which numbers of an action are displacements, where the robot's description says so: by the `step` of its
        `axes` (`selfalign play --robot`), or by the kind of a simulated body's action space."""
        dims = self.episodes[0].action.shape[-1]
        axes, space = self.embodiment.get("axes"), self.embodiment.get("action_space")
        axes = (
            [axis for axis in axes if isinstance(axis, Mapping) and "step" in axis]
            if isinstance(axes, list | tuple)
            else []
        )
        if len(axes) == dims:
            return tuple(axis["step"] is not None and not axis.get("toggles") for axis in axes)
        if isinstance(space, Mapping) and "kind" in space:
            return (*(str(space["kind"]).endswith("delta") for _ in range(dims - 1)), False)
        return None

    def num_transitions(self, horizon: int) -> int:
        """Transitions (o_t, a_{t:t+H}, o_{t+H}) that lie within an episode."""
        return sum(len(episode.pairs(horizon)) for episode in self.episodes)

    def require(
        self,
        horizon: int,
        *,
        cameras: Sequence[str] = (),
        state_dim: int | None = None,
        action_dim: int | None = None,
    ) -> None:
        """Checks that a model can be fitted to this play.

        Args:
            horizon: the model's action horizon H.
            cameras: cameras of which at least one must be there.
            state_dim: the most state dimensions the model takes.
            action_dim: the most action dimensions the model takes.

        Raises:
            ValueError: no episode has H + 1 frames, no known camera, or too many dimensions.
        """
        if self.num_transitions(horizon) == 0:
            longest = max(len(episode) for episode in self.episodes)
            raise ValueError(
                f"{self.name} is too short: a transition needs {horizon + 1} frames, "
                f"the longest of {len(self)} episodes has {longest}; record longer episodes"
            )
        if cameras and not set(cameras) & set(self.cameras):
            raise ValueError(
                f"{self.name} has the cameras {', '.join(self.cameras) or 'none'}, "
                f"the model knows {', '.join(cameras)}; rename the columns or choose another model"
            )
        for what, found, most in (("state", self.state_dim, state_dim), ("action", self.action_dim, action_dim)):
            if most is not None and found > most:
                raise ValueError(f"{self.name} has {found} {what} dimensions, the model takes at most {most}")

    def split(self, holdout: float = 0.2, seed: int = 0) -> tuple[Self, Self]:
        """(training, held-out) play: whole episodes, at least one on each side; with one episode, its first and last
        part.

        Raises:
            ValueError: `holdout` is not within (0, 1), or one episode is too short to be cut.
        """
        if not 0 < holdout < 1:
            raise ValueError(f"holdout must be between 0 and 1, got {holdout}")
        if len(self) == 1:
            cut = round(len(self.episodes[0]) * (1 - holdout))
            if not 0 < cut < len(self.episodes[0]):
                raise ValueError(f"{self.name} has one episode of {len(self.episodes[0])} frames, too few to split")
            return self._with([self.episodes[0].part(0, cut)]), self._with([self.episodes[0].part(cut, None)])
        order = np.random.default_rng(seed).permutation(len(self))
        held = set(order[: min(len(self) - 1, max(1, round(len(self) * holdout)))].tolist())
        kept = [episode for i, episode in enumerate(self.episodes) if i not in held]
        return self._with(kept), self._with([self.episodes[i] for i in sorted(held)])

    def take(self, episodes: int) -> Self:
        """The first few episodes (all, if there are fewer)."""
        return self._with(self.episodes[:episodes])

    def _with(self, episodes: Sequence[Episode]) -> Self:
        return replace(self, episodes=tuple(episodes))


def check_alike(first: Episode, episode: Episode, index: int, name: str) -> None:
    """Raises `ValueError` unless episode `index` of what `name` says is of the first one's robot."""
    ours = {column: values.shape[1:] for column, values in first.columns().items()}
    theirs = {column: values.shape[1:] for column, values in episode.columns().items()}
    for column in ours.keys() | theirs.keys():
        if ours.get(column) != theirs.get(column):
            raise ValueError(
                f"{name}: episode {index} has {column!r} of shape {theirs.get(column, 'none')} a frame, "
                f"episode 0 of {ours.get(column, 'none')}; play must come from one robot"
            )
    if episode.fps != first.fps:
        raise ValueError(f"{name}: episode {index} runs at {episode.fps} Hz, episode 0 at {first.fps} Hz")


def check_finite(episode: Episode, index: int, name: str) -> None:
    """Raises `ValueError` at a NaN or an infinity, and says where it is."""
    for column, values in (("observation.state", episode.state), ("action", episode.action)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            frame, dim = bad[0]
            raise ValueError(
                f"{name}: {values[frame, dim]} in episode {index}, frame {frame}, column {column!r}, dimension {dim} "
                f"({len(bad)} such values in the episode); remove the episode or repair the recording"
            )
