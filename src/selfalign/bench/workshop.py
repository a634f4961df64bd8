"""What the cells of one body share: play, recorded once, and what methods make of it, fitted once.

Cells of different tasks, methods and amounts let the same body play in the same way: a trajectory depends on the seed
and on its number only, so that less play is the beginning of more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfalign.baselines import Adapted
from selfalign.bench.live_features import LiveFeatures
from selfalign.bench.memory import PeakMemory
from selfalign.bench.methods import STALE, run_method
from selfalign.bench.plan import NARROW, Cell
from selfalign.bench.resident import arena_of
from selfalign.bench.subject import RANDOM, body_seed
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.policy import Policy
from selfalign.sim.bodies import BodySpec, before_change
from selfalign.sim.playing import play_by_axes
from selfalign.sim.record import record_demonstrations, record_play
from selfalign.sim.tasks import Kind


@dataclass(frozen=True, eq=False)
class Made:
    """What a method made of a body's play or demonstrations."""

    fitted: Adapted
    peak_megabytes: float
    """Of the process, while it did."""
    robot_seconds: float
    """That the robot gave."""


class Workshop:
    """One body in one process."""

    def __init__(self, policy: Policy, body: BodySpec, seed: int):
        self.policy, self.body, self.seed = policy, body, seed
        self._plays: dict[str, Play] = {}
        self._demonstrations: dict[str, list[Episode]] = {}
        self._made: dict[str, Made] = {}

    def play(self, cell: Cell) -> Play | None:
        """The most play that a cell asks for; None where it asks for none."""
        if not cell.play:
            return None
        key, most = _played(cell), max(cell.play)
        if key not in self._plays or len(self._plays[key]) < most:
            self._plays[key] = self._record(cell, most)
        return self._plays[key].take(most)

    def demonstrations(self, cell: Cell) -> list[Episode]:
        """The most demonstrations that a cell asks for: others than those that may serve as play."""
        most = max(cell.demonstrations, default=0)
        kind = cell.demonstrated
        if len(self._demonstrations.get(kind, ())) < most:
            self._demonstrations[kind] = self._demonstrate(kind, most, body_seed(self.seed, 1))
        return self._demonstrations.get(kind, [])[:most]

    def make(self, cell: Cell, amount: int) -> Made:
        """What a cell's method makes of an amount of what the cell varies. Demonstrations are of one task, and what is
        made of them is not kept."""
        if cell.demonstrations:
            return self._make(cell, self.play(cell), self.demonstrations(cell)[:amount])
        key = json.dumps([cell.method, dict(cell.settings), amount, _played(cell)], sort_keys=True)
        if key not in self._made:
            self._made[key] = self._stale(cell, amount) if cell.method == STALE else self._of_play(cell, amount)
        return self._made[key]

    def _of_play(self, cell: Cell, amount: int) -> Made:
        play = self.play(cell)
        assert play is not None  # a cell without demonstrations has play
        aligned = self.make(replace(cell, method="selfalign"), amount) if cell.method == RANDOM else None
        return self._make(cell, play.take(amount), (), aligned)

    def _stale(self, cell: Cell, amount: int) -> Made:
        """What was aligned to the body before it changed, its statistics too: that of a robot not aligned again."""
        before = Workshop(self.policy, before_change(self.body, cell.scenario, self.seed), self.seed)
        made = before.make(replace(cell, method="selfalign"), amount)
        # The verdict was on other play: it says nothing of this body.
        return replace(made, fitted=replace(made.fitted, method=STALE, history={}))

    def _make(
        self, cell: Cell, play: Play | None, demonstrations: Sequence[Episode], aligned: Made | None = None
    ) -> Made:
        memory, like = PeakMemory(), None if aligned is None else aligned.fitted
        given = self.policy, play, demonstrations, self.seed, cell.settings
        fitted = run_method(cell.method, *given, aligned=like, embodiment=self._described)
        peak = memory.megabytes if aligned is None else max(memory.megabytes, aligned.peak_megabytes)
        recorded = (*(play.episodes if play else ()), *demonstrations)
        return Made(fitted, peak, round(sum(len(e) / e.fps for e in recorded), 1))

    @property
    def _described(self) -> dict[str, Any]:
        return {"name": self.body.name, **self.body.to_dict()}

    def _record(self, cell: Cell, trajectories: int) -> Play:
        episodes = self._moving(cell, trajectories)
        play = Play.from_episodes(episodes, self._described, self.body.name)
        if self.policy.settings.features is None:
            return play
        return LiveFeatures.like(cell.features, cell.weights).attach(play)

    def _moving(self, cell: Cell, trajectories: int) -> list[Episode]:
        if cell.motion == "demonstrations":
            return self._demonstrate(cell.task, trajectories, self.seed)
        size, sim = self.policy.model.config.image_size, arena_of(self.body).simulations(1)[0]
        told = self.body, trajectories, cell.play_length, self.seed
        if cell.motion in ("axes", "brisk"):
            return list(play_by_axes(*told, image_size=size, sim=sim, brisk=cell.motion == "brisk"))
        extent = NARROW if cell.motion == "narrow" else 1.0
        return record_play(*told, image_size=size, sim=sim, extent=extent)

    def _demonstrate(self, kind: Kind, count: int, seed: int) -> list[Episode]:
        size, sim = self.policy.model.config.image_size, arena_of(self.body).simulations(1)[0]
        return record_demonstrations(self.body, count, seed, kinds=(kind,), image_size=size, sim=sim)


def _played(cell: Cell) -> str:
    """What the play of a body depends on, but for how much of it there is."""
    task = cell.task if cell.motion == "demonstrations" else ""
    return json.dumps([cell.motion, task, cell.play_length, cell.features, cell.weights])
