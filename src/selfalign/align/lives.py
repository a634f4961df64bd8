"""Which embodiments fill the slots of rehearsal, step after step: how old they are, how old they get, who follows them.

Nothing of it depends on the model, so it can be planned ahead of the training. A `Lives` never changes: planning makes
new ones, and the training keeps that of the step it has come to, which is what its checkpoints hold.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from selfalign.align.batches import Batches, Plan
from selfalign.align.contrastive import contrast_group
from selfalign.align.settings import RehearsalConfig
from selfalign.data.changes import body_from_dict
from selfalign.data.units import Units
from selfalign.data.virtual import VirtualEmbodiment, VirtualSources


@dataclass(frozen=True, eq=False)
class Lives:
    """The slots before a step."""

    bodies: tuple[VirtualEmbodiment, ...]
    age: Int[np.ndarray, " S"]
    limit: Int[np.ndarray, " S"]
    """At which they are given a new embodiment."""
    rng: np.random.Generator
    """What is drawn next comes from a copy of it."""
    step: int

    @property
    def old(self) -> Bool[np.ndarray, " S"]:
        """Slots whose embodiments live no longer than this step."""
        return self.age + 1 >= self.limit


class Slots:
    """Begins, ages and replaces the embodiments of slots, in groups where they are contrasted."""

    def __init__(self, batches: Batches, config: RehearsalConfig):
        self.batches, self.config, self.group = batches, config, config.contrastive.group

    def first(self) -> Lives:
        """The slots before the first step."""
        rng, zeros = np.random.default_rng([self.config.seed, 7]), np.zeros(self.config.slots, dtype=np.int64)
        return self._begin((), zeros, zeros, np.arange(0, self.config.slots, self.group), rng, 0)

    def plans(self, lives: Lives) -> Iterator[Plan[Lives]]:
        """What the steps from there on read."""
        while True:
            rng, age = copy.deepcopy(lives.rng), lives.age + 1
            samples = self.batches.choose(lives.bodies, rng)
            firsts = np.flatnonzero(lives.old[:: self.group]) * self.group
            lives = self._begin(lives.bodies, age, lives.limit, firsts, rng, lives.step + 1)
            yield Plan(samples, lives)

    def _begin(
        self,
        bodies: tuple[VirtualEmbodiment, ...],
        age: np.ndarray,
        limit: np.ndarray,
        firsts: np.ndarray,
        rng: np.random.Generator,
        step: int,
    ) -> Lives:
        """New embodiments for the groups of slots that begin at `firsts`."""
        config, batches, width = self.config, self.batches, self.batches.width(step)
        living, age, limit = list(bodies), age.copy(), limit.copy()
        for first in firsts:
            slots = slice(first, first + self.group)
            age[slots] = 0
            limit[slots] = rng.integers(max(1, config.max_age // 8), config.max_age + 1)
            anchor = batches.sample(rng, step)
            living[slots] = contrast_group(anchor, batches.sources, config.contrastive, rng, width)
        return Lives(tuple(living), age, limit, rng, step)

    def state_dict(self, lives: Lives) -> dict[str, Any]:
        return {
            "age": torch.from_numpy(lives.age.copy()),
            "limit": torch.from_numpy(lives.limit.copy()),
            "bodies": json.dumps([_describe(body) for body in lives.bodies]),
            **drawing_state(lives.rng, lives.step),
        }

    def restored(self, state: dict[str, Any]) -> Lives:
        """The inverse of `state_dict`."""
        bodies = tuple(_rebuild(self.batches.sources, data) for data in json.loads(state["bodies"]))
        age, limit = (state[name].numpy().copy() for name in ("age", "limit"))
        return Lives(bodies, age, limit, *restored_drawing(state))


def drawing_state(rng: np.random.Generator, step: int) -> dict[str, Any]:
    """Where a drawing stands, for a checkpoint."""
    return {"rng": json.dumps(rng.bit_generator.state), "step": step}


def restored_drawing(state: dict[str, Any]) -> tuple[np.random.Generator, int]:
    """The inverse of `drawing_state`."""
    rng = np.random.default_rng(0)
    rng.bit_generator.state = json.loads(state["rng"])
    return rng, state["step"]


def _describe(body: VirtualEmbodiment) -> dict[str, Any]:
    play = [int(e) for e in body.play_episodes]
    look = {"look": body.look} if body.look else {}
    units = {} if body.units is None else {"units": body.units.to_dict()}
    return {"rig": body.rig, "perturbation": body.perturbation.to_dict(), "play": play, **look, **units}


def _rebuild(sources: VirtualSources, data: dict[str, Any]) -> VirtualEmbodiment:
    units = Units.from_dict(data["units"]) if "units" in data else None
    body = sources.embodiment(data["rig"], body_from_dict(data["perturbation"]), np.array(data["play"]), units)
    return replace(body, look=data.get("look", int(data.get("recoloured", False))))  # which older checkpoints have
