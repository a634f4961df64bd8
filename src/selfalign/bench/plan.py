"""What a matrix measures: a list of cells, each a checkpoint and a method on bodies of a scenario, as plain values.

A cell says everything that its numbers depend on, but for the checkpoint's files. Plans are JSON files, or have names.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args

from selfalign.acting import Acting
from selfalign.baselines.choices import check_fair, chosen
from selfalign.configs import below, refuse
from selfalign.provenance import write_json
from selfalign.sim.regions import REGIONS, SCENARIOS, Region, Scenario
from selfalign.sim.seeds import TEST
from selfalign.sim.tasks import KINDS, Kind

FORMAT = "selfalign-plan-1"
DEFAULT_CHECKPOINT = "checkpoints/tiny"
SAME_TEST = ("scenario", "task", "seed", "episodes", "execute", "num_steps", "play_length")
"""Settings that two results share whose numbers may be compared; how bodies act is told beside them."""
Motion = Literal["free", "narrow", "axes", "brisk", "demonstrations"]
NARROW = 0.3
"""Share of the workspace that narrow play covers."""

PLAY_CURVE = (1, 3, 10, 30, 100)
FEW_SHOT = (1, 5, 10, 20)
FROM_PLAY, FROM_DEMONSTRATIONS = ("pad", "prompt", "encoder"), ("finetune", "lora")
"""Baselines by what they learn from."""
ENCODER = "outputs/encoder.safetensors"
"""Where `bench encoder` writes the encoder, and the plan `baselines` looks for it."""
SPEEDS, TEMPERATURES = (1.0, 1.4, 1.8, 2.2), (1.0, 0.7, 0.5)
"""Of acting, that are tried."""
HEADLINE: tuple[Scenario, ...] = ("camera", "action", "robot", "all")


@dataclass(frozen=True)
class Cell:
    """Success of some bodies under what a method makes of each amount of play, or of demonstrations."""

    checkpoint: str
    """Checkpoint directory."""
    method: str = "selfalign"
    """One of `selfalign.baselines`, or a control (`bench.methods`)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, where they are not its own defaults."""
    scenario: Scenario = "camera"
    task: Kind = "reach"
    region: Region = "heldout"
    """"source": bodies of the kind that the checkpoint was trained on. With `selfalign`, they are the oracle."""
    seed: int = 0
    """Draws bodies, play and scenes (`sim/seeds.py`)."""
    bodies: int = 12
    episodes: int = 20
    """Of each body for each amount."""
    play: tuple[int, ...] = (20,)
    """Amounts of play, trajectories; a smaller one is the beginning of a larger one."""
    play_length: int = 50
    """Frames of each trajectory, at 20 Hz."""
    motion: Motion = "free"
    """What the body does as it plays: its tip goes about the workspace (`free`) or a part of it (`narrow`), it moves
    each number of its own actions within limits, as `selfalign play --robot` moves a real robot (`axes`, or `brisk`,
    its other tempo), or it does the task (`demonstrations`)."""
    demonstrations: tuple[int, ...] = ()
    """Amounts of demonstrations, for methods that learn from them; `play` then has one amount or none."""
    shown: Kind | None = None
    """What the demonstrations do; None: the cell's task."""
    execute: int = 4
    """Steps of each action chunk that are carried out before the policy is asked again."""
    num_steps: int = 10
    """Euler steps of the flow per chunk."""
    speed: float | None = None
    """Of acting (`selfalign.acting`); None: the checkpoint's own. So `temperature`."""
    temperature: float | None = None
    features: str = ""
    """Folder of the stored features that the checkpoint was pretrained with, where it was."""
    weights: str = ""
    """File with the weights of the extractor that made them."""
    label: str = ""
    """What the cell is called in tables; nothing depends on it."""

    def __post_init__(self) -> None:
        refuse("a cell", self._of_wrong_types())
        wrong = [
            f"{name}={getattr(self, name)!r} ({', '.join(map(str, known))})"
            for name, known in (
                ("scenario", SCENARIOS),
                ("task", KINDS),
                ("shown", (None, *KINDS)),
                ("region", REGIONS),
                ("motion", get_args(Motion)),
            )
            if getattr(self, name) not in known
        ]
        wrong += below(self, bodies=1, episodes=1, play_length=2, execute=1, num_steps=1, seed=0)
        if any(amount < 1 for amount in (*self.play, *self.demonstrations)):
            wrong.append(f"play={self.play}, demonstrations={self.demonstrations} (each at least 1)")
        if self.demonstrations and len(self.play) > 1:
            wrong.append(f"play={self.play} beside demonstrations={self.demonstrations} (one of them may vary)")
        if self.shown is not None and not self.demonstrations:
            wrong.append(f"shown={self.shown!r} without demonstrations")
        if not self.demonstrations and not self.play:
            wrong.append("neither play nor demonstrations")
        refuse("a cell", wrong)
        self.acting(Acting())

    def _of_wrong_types(self) -> list[str]:
        """What is refused of values as a file may have them: `2.0` and `true` are no counts. (Settings are asked about
        where the method is known.)"""
        counts: tuple[str, ...] = ("seed", "bodies", "episodes", "play_length", "execute", "num_steps")
        amounts: tuple[str, ...] = ("play", "demonstrations")
        numbers: tuple[str, ...] = ("speed", "temperature")
        texts: tuple[str, ...] = ("checkpoint", "method", "features", "weights", "label")

        def is_number(value: Any, kind: type | UnionType = int) -> bool:
            return isinstance(value, kind) and not isinstance(value, bool)

        def are_numbers(values: Any) -> bool:
            return isinstance(values, tuple | list) and all(map(is_number, values))

        kinds: list[tuple[tuple[str, ...], str, Callable[[Any], bool]]] = [
            (texts, "text", lambda value: isinstance(value, str)),
            (counts, "a whole number", is_number),
            (amounts, "whole numbers", are_numbers),
            (numbers, "a number", lambda value: value is None or is_number(value, int | float)),
        ]
        return [
            f"{name}={value!r} ({told})"
            for names, told, fits in kinds
            for name in names
            if not fits(value := getattr(self, name))
        ]

    @property
    def amounts(self) -> tuple[int, ...]:
        """What varies, rising: demonstrations where there are some, else play."""
        return tuple(sorted(set(self.demonstrations or self.play)))

    @property
    def demonstrated(self) -> Kind:
        """What the demonstrations do."""
        return self.shown or self.task

    def acting(self, own: Acting) -> Acting:
        """How a policy acts in it, whose own way that is.

        Raises:
            ValueError: a speed or temperature that nothing acts with.
        """
        return own.but(self.speed, self.temperature)

    @property
    def name(self) -> str:
        return self.label or Path(self.checkpoint).name

    def measured(self) -> dict[str, Any]:
        """What the numbers depend on, beside the checkpoint's files, as JSON values.

        (The checkpoint says by which features it knows next observations; they may lie anywhere.)
        """
        names = ("checkpoint", "label", "features", "weights")
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in names}
        for name in ("shown", "speed", "temperature"):
            if told[name] is None:
                del told[name]  # so that cells from before it was there are the same cells
        return json.loads(json.dumps(told))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From JSON values; what is left out has its default.

        Raises:
            ValueError: an unknown field, or a value that no cell has.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or "checkpoint" not in data or not data.keys() <= known:
            unknown = sorted(set(data) - known) if isinstance(data, Mapping) else data
            raise ValueError(
                f"a cell is an object with a checkpoint; unknown: {unknown}; known: {', '.join(sorted(known))}"
            )
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class Plan:
    """Cells to measure, and what the whole is called."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError(f"the plan {self.name!r} has no cell")

    def of_bodies(self, count: int) -> Self:
        """The same cells with so many bodies each, the first of those that they have anyway."""
        return dataclasses.replace(self, cells=tuple(dataclasses.replace(cell, bodies=count) for cell in self.cells))

    def of_tasks(self, tasks: Sequence[Kind]) -> Self:
        """Its cells of those tasks.

        Raises:
            ValueError: there are none.
        """
        cells = tuple(cell for cell in self.cells if cell.task in tasks)
        if not cells:
            there = ", ".join(dict.fromkeys(cell.task for cell in self.cells))
            raise ValueError(f"the plan {self.name!r} has no cell of {', '.join(tasks) or 'no task'}; it has {there}")
        return dataclasses.replace(self, cells=cells)

    def acting_at(self, speed: float | None, temperature: float | None) -> Self:
        """The same cells with a speed and a temperature, where they have none of their own; None changes nothing.

        Raises:
            ValueError: a speed or temperature that nothing acts with.
        """
        cells = tuple(
            dataclasses.replace(
                cell,
                speed=speed if cell.speed is None else cell.speed,
                temperature=temperature if cell.temperature is None else cell.temperature,
            )
            for cell in self.cells
        )
        return dataclasses.replace(self, cells=cells)

    def save(self, path: Path) -> Path:
        """Writes it as JSON, atomically."""
        cells = [json.loads(json.dumps(dataclasses.asdict(cell))) for cell in self.cells]
        return write_json(path, {"format": FORMAT, "name": self.name, "cells": cells})

    @classmethod
    def open(cls, source: str | Path, checkpoint: str = DEFAULT_CHECKPOINT, seed: int = TEST[0]) -> Self:
        """A plan from its JSON file, or by name.

        Args:
            source: the file, or one of `PLANS`.
            checkpoint: that a named plan measures.
            seed: of the bodies that a named plan measures.

        Raises:
            ValueError: neither a file nor a name, or a damaged file.
        """
        if str(source) in PLANS:
            return cls(str(source), tuple(PLANS[str(source)](checkpoint, seed)))
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"no plan {str(source)!r}: neither a file nor one of {', '.join(PLANS)}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
            return cls(data["name"], tuple(Cell.from_dict(cell) for cell in data["cells"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a plan: {error}") from error


# ---- plans by name -------------------------------------------------------------------------------------------------


def with_oracle(cell: Cell) -> list[Cell]:
    """A cell, and its oracle: source bodies that align with the most play of the cell."""
    most = max(cell.play) if cell.play else 20
    aligned: dict[str, Any] = {"method": "selfalign", "settings": {}, "demonstrations": (), "shown": None}
    oracle = dataclasses.replace(cell, **aligned, region="source", play=(most,), motion="free")
    return [cell, oracle]


def smoke(checkpoint: str, seed: int) -> list[Cell]:
    """Does it run? Two bodies, two episodes; the numbers mean nothing."""
    cell = Cell(checkpoint, seed=seed, bodies=2, episodes=2, play=(2, 4))
    return [*with_oracle(cell), dataclasses.replace(cell, method="frozen", play=(4,))]


def headline(checkpoint: str, seed: int) -> list[Cell]:
    """Every scenario and task before and after aligning, on unseen bodies and on bodies of seen kinds, and controls."""
    cells = []
    for scenario, task in product(HEADLINE, KINDS):
        cell = Cell(checkpoint, scenario=scenario, task=task, seed=seed)
        measured, oracle = with_oracle(cell)
        cells += [measured, oracle]
        cells += [dataclasses.replace(cell, method=method) for method in ("frozen", "random", "stale")]
        cells.append(dataclasses.replace(oracle, method="frozen"))
    return cells


def stale(checkpoint: str, seed: int) -> list[Cell]:
    """Bodies that changed, under what was aligned before; it is in `headline`, too."""
    return [Cell(checkpoint, method="stale", scenario=scenario, seed=seed) for scenario in HEADLINE]


def curve(checkpoint: str, seed: int) -> list[Cell]:
    """Success over the amount of play, and how much of it gets to 90 % of the oracle."""
    cells = []
    for scenario in HEADLINE:
        cell = Cell(checkpoint, scenario=scenario, seed=seed, play=PLAY_CURVE)
        cells += [*with_oracle(cell), dataclasses.replace(cell, method="frozen", play=PLAY_CURVE[-1:])]
    return cells


def few_shot(checkpoint: str, seed: int, demonstrations: tuple[int, ...] = FEW_SHOT) -> list[Cell]:
    """Fine-tuning on demonstrations of the new body, beside aligning to its play.

    Its play gives the statistics here, too: a few demonstrations of one task know little of what the body can do.
    """
    settings, cells = _tuned(FROM_DEMONSTRATIONS), []
    for scenario in HEADLINE:
        cell = Cell(checkpoint, scenario=scenario, seed=seed)
        learned = dataclasses.replace(cell, demonstrations=demonstrations)
        cells += with_oracle(cell)
        cells += [dataclasses.replace(learned, method=name, settings=settings[name]) for name in FROM_DEMONSTRATIONS]
    return cells


def baselines(checkpoint: str, seed: int) -> list[Cell]:
    """What else can be made of the same play, and of the most demonstrations of `few-shot`."""
    settings, cells = _tuned((*FROM_PLAY, *FROM_DEMONSTRATIONS)), few_shot(checkpoint, seed, FEW_SHOT[-1:])
    settings["encoder"] = {"path": ENCODER}  # which was trained with what was chosen
    for scenario in HEADLINE:
        cell = Cell(checkpoint, scenario=scenario, seed=seed)
        cells.append(dataclasses.replace(cell, method="frozen"))
        cells += [dataclasses.replace(cell, method=name, settings=settings[name]) for name in FROM_PLAY]
    return cells


def _tuned(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What was chosen for methods on validation bodies, written out, so that other choices are other cells.

    Raises:
        ValueError: some were tuned with more trials than others.
    """
    check_fair(names)
    return {name: chosen(name) for name in names}


def other_tasks(checkpoint: str, seed: int) -> list[Cell]:
    """What fine-tuning on one task leaves of the others, beside a context, which serves all."""
    settings, cells = _tuned(FROM_DEMONSTRATIONS), []
    for scenario, task in product(HEADLINE, KINDS[1:]):
        cell = Cell(checkpoint, scenario=scenario, task=task, seed=seed)
        learned = dataclasses.replace(cell, demonstrations=FEW_SHOT[-1:], shown=KINDS[0])
        cells += [*with_oracle(cell), dataclasses.replace(cell, method="frozen")]
        cells += [dataclasses.replace(learned, method=name, settings=settings[name]) for name in FROM_DEMONSTRATIONS]
    return cells


def play_quality(checkpoint: str, seed: int) -> list[Cell]:
    """Does it matter what the body does as it plays?"""
    return [
        Cell(checkpoint, scenario=scenario, seed=seed, motion=motion, label=motion)
        for scenario, motion in product(HEADLINE, get_args(Motion))
    ]


def acting(checkpoint: str, seed: int) -> list[Cell]:
    """How fast, and how near to what is likely, should it act? To be asked of validation bodies."""
    return [
        Cell(
            checkpoint,
            scenario=scenario,
            task=task,
            seed=seed,
            bodies=2,
            speed=speed,
            temperature=temperature,
            label=str(Acting(speed, temperature)),
        )
        for speed, temperature, scenario, task in product(SPEEDS, TEMPERATURES, HEADLINE, KINDS)
    ]


PLANS: dict[str, Callable[[str, int], list[Cell]]] = {
    "smoke": smoke,
    "headline": headline,
    "stale": stale,
    "curve": curve,
    "few-shot": few_shot,
    "baselines": baselines,
    "other-tasks": other_tasks,
    "play-quality": play_quality,
    "acting": acting,
}
