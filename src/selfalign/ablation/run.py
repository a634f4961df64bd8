"""`selfalign bench ablate`: trains recipes that differ in one thing, and measures them on the same bodies.

    OUT/towers/TOWER/        a vision tower and its output on every frame, shared by all recipes
    OUT/trainings/RECIPE/    a training: its checkpoints, `policy/`, and `recipe.json` when it is complete
    OUT/bench/               the matrix (`selfalign.bench.matrix`)
    OUT/ablation.json        the recipes, their trainings and the matrix

RECIPE is a digest of everything that the training's result depends on, its data included, and TOWER of what the tower's
does. An interrupted run goes on where it stopped; a training that fails is reported and does not stop the others.
"""

import dataclasses
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selfalign.ablation.recipes import RECIPES, SCALES, Recipe, Scale, ScaleName, base, chosen
from selfalign.ablation.table import print_ablation
from selfalign.bench.matrix import run_plan
from selfalign.bench.memory import PeakMemory
from selfalign.bench.plan import Cell, Plan, with_oracle
from selfalign.cluster import Cluster, run_on
from selfalign.commands import pretrain
from selfalign.commands.pretrain import TrainingConfig
from selfalign.configs import below, changed, refuse
from selfalign.data.snapshots import Snapshots
from selfalign.data.sources import RECORDED, SourceData
from selfalign.model.weights import load_model
from selfalign.provenance import Stopwatch, digest, provenance, without_places, write_json
from selfalign.sim.regions import Scenario
from selfalign.sim.seeds import Split, seeds_of
from selfalign.train import checkpoint
from selfalign.workers import progress_bar

FORMAT = "selfalign-ablation-1"
NOT_RESULTS = ("out", "shared", "tower", "snapshots", "machine", "log")
"""Flags of a training that its result does not depend on, or only by what is in `tower_digest`."""


@dataclass(frozen=True)
class AblateConfig:
    """Train recipes that differ from the shipped one in one thing each, and measure them on the same bodies."""

    out: Path
    """Folder of everything. What is finished in it is not made again."""
    cells: tuple[str, ...] = ()
    """Names of cells, or groups of them: losses, contexts, architecture, data, headline. None: all."""
    scale: ScaleName = "ablation"
    """"ablation": about 25 minutes for two trainings side by side, a core each; "shipped": about 90."""
    data: tuple[str, ...] = (RECORDED,)
    snapshots: Path = Path("data/snapshots")
    """Pictures that the vision tower learns on, where it is not given."""
    tower: Path | None = None
    """Checkpoint whose vision tower all recipes have; None: one that learns first, on the snapshots."""
    features: Path | None = None
    """Folder of `selfalign features` for the cell stored-features."""
    weights: Path | None = None
    """File with the weights of the extractor that made them."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings: every recipe is trained once with each."""
    split: Split = "validation"
    """Bodies that are measured: choices are made on those of validation."""
    scenarios: tuple[Scenario, ...] = ()
    """What is unseen about them; none: what the scale says."""
    trainings: int = 1
    """At the same time."""
    threads: int = 2
    """Of each training."""
    workers: int = 2
    """Processes of the benchmark."""
    cluster: Cluster = "none"
    """"ray": trainings and benchmark on Ray; `out`, data and snapshots must then be on a disk that machines share."""
    measure: bool = True
    """Measure what was trained."""
    dry_run: bool = False
    """Only say what would be done."""

    @property
    def measured(self) -> Scale:
        """The scale, with the scenarios that are asked for."""
        scale = SCALES[self.scale]
        return dataclasses.replace(scale, scenarios=self.scenarios or scale.scenarios)

    def __post_init__(self) -> None:
        wrong = below(self, trainings=1, threads=1, workers=1)
        if not self.seeds:
            wrong.append("seeds=() (at least one)")
        if len({*self.scenarios}) < len(self.scenarios):
            wrong.append(f"scenarios={self.scenarios} (each once)")
        refuse("bench ablate", wrong)
        chosen(self.cells)  # raises for a name that there is not


@dataclass(frozen=True)
class Training:
    """One recipe with one seed, as a worker gets it."""

    name: str
    recipe: Recipe
    config: TrainingConfig
    digest: str

    @property
    def done(self) -> Path:
        """Written when it is complete."""
        return self.config.out / "recipe.json"

    @property
    def policy(self) -> Path:
        return self.config.out / "policy"

    @property
    def label(self) -> str:
        return self.name if self.config.seed == 0 else f"{self.name}/{self.config.seed}"


def run(config: AblateConfig, *, show: bool = True) -> dict[str, Any]:
    """Trains what is not trained, measures, prints, and writes `ablation.json`.

    Raises:
        ValueError, FileNotFoundError: no such cell; data, snapshots or features that are not there.
        RuntimeError: a worker died; or, after all else was done and written, a training or a cell failed.
        KeyboardInterrupt: after the step that was running was saved.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    try:
        trainings = plan_trainings(config)
    except FileNotFoundError as missing:
        if not config.dry_run:
            raise
        for name in chosen(config.cells):
            console.print(f"{name}: {RECIPES[name].about}", markup=False)
        console.print(f"Before they can be trained: {missing}", markup=False)
        return {}
    if config.dry_run:
        for job in trainings:
            state = "trained" if job.done.is_file() else "to train"
            console.print(f"{job.label}: {job.recipe.about} ({state}, {job.config.out})", markup=False)
        return {}
    begun = config.out.is_dir() and any(config.out.iterdir())  # what is there is not made again
    failed = _train_all(config, trainings, show)
    for job in trainings:
        if job.digest in failed:
            console.print(f"failed: {job.label}: {failed[job.digest]['error']}", markup=False)
    result = {
        "format": FORMAT,
        "scale": json.loads(json.dumps({"name": config.scale, **dataclasses.asdict(config.measured)})),
        "trainings": [_told(job, failed) for job in trainings],
        "provenance": provenance(None if begun else watch.seconds),
    }
    cells = bench_cells(config, [t for t in trainings if t.digest not in failed])
    if config.measure and cells:
        plan = Plan(f"ablation-{config.scale}", tuple(cells))
        bench = config.out / "bench"
        matrix = run_plan(plan, bench, workers=config.workers, cluster=config.cluster, show=show, table=False)
        result["matrix"] = matrix
        print_ablation(matrix, console)
    path = write_json(config.out / "ablation.json", result)
    console.print(f"Written to {path}")
    wrong = len(failed), result["matrix"]["failed"] if "matrix" in result else 0
    if any(wrong):
        raise RuntimeError(
            f"{wrong[0]} trainings and {wrong[1]} cells failed: {path} says why; the same command goes on"
        )
    return result


def plan_trainings(config: AblateConfig) -> list[Training]:
    """Every chosen recipe with every seed. Recipes that train alike are trained once: they have one folder."""
    start = _start(config)
    identities: dict[Path | None, str] = {None: SourceData.open(config.data).fingerprint}
    made = tower_digest(start, identities[None])
    found = []
    for name in chosen(config.cells):
        recipe = RECIPES[name]
        if recipe.stored_features and (config.features is None or config.weights is None):
            raise ValueError(
                f"the cell {name} needs features: compute some with `selfalign features`, and give --features and the "
                "extractor's --weights"
            )
        features = config.features if recipe.stored_features else None
        if features not in identities:
            identities[features] = SourceData.open(config.data, features=features).fingerprint
        own = changed(changed(start, {"recordings": {"features": features}}), recipe.training)
        for seed in config.seeds:
            flags = dataclasses.replace(own, seed=seed, shared=config.out / "towers" / made)
            named = training_digest(flags, identities[features], made)
            placed = dataclasses.replace(flags, out=config.out / "trainings" / named)
            found.append(Training(name, recipe, placed, named))
    return found


def _start(config: AblateConfig) -> TrainingConfig:
    """What recipes differ from."""
    snapshots = config.snapshots if config.tower is None else None
    own = {"tower": config.tower, "machine": {"threads": config.threads}}
    return changed(base(config.scale, config.data, snapshots), own)


def training_digest(config: TrainingConfig, data: str, tower: str) -> str:
    """Of everything that a training's result depends on.

    Args:
        data: fingerprint of the recordings.
        tower: `tower_digest`.
    """
    told = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_RESULTS}
    del told["recordings"]["data"]  # wherever they are
    return digest({"training": told, "data": data, "tower": tower})


def tower_digest(config: TrainingConfig, data: str) -> str:
    """Of what a tower and its features depend on, but for the training's seed: it is the policy that is repeated."""
    if config.tower is not None:
        return digest({"tower": load_model(config.tower).fingerprint(), "data": data})
    pictures = None if config.snapshots is None else Snapshots.open(config.snapshots).fingerprint
    tower = {"preset": config.preset, "snapshots": pictures, "steps": config.optimiser.pointing_steps}
    return digest({"tower": tower, "data": data})


def _train_all(config: AblateConfig, trainings: Sequence[Training], show: bool) -> dict[str, dict[str, str]]:
    """Trains what is not there; returns errors by digest."""
    distinct = {t.digest: t for t in trainings}
    todo = [t for t in distinct.values() if not t.done.is_file()]
    failed: dict[str, dict[str, str]] = {}
    if not todo:
        return failed
    assert todo[0].config.shared is not None
    _make_tower(config, todo[0].config.shared)
    with progress_bar("training recipes", len(distinct), show=show and config.trainings > 1) as bar:
        bar.at(len(distinct) - len(todo))

        def done(item: Training, error: dict[str, str]) -> None:
            if error:
                failed[item.digest] = error
            bar.finished(item.label)

        run_on(config.cluster, train, todo, config.trainings, cores=config.threads, on_done=done)
    return failed


def _make_tower(config: AblateConfig, shared: Path) -> None:
    """The tower and its features, where they are not there: what trainings at the same time would all begin with."""
    out = config.out / "trainings" / f"tower-{digest(shared)}"
    if not (out / "policy").is_dir():
        pretrain.run(dataclasses.replace(_start(config), shared=shared, out=out, steps=0))


def train(job: Training) -> dict[str, str]:
    """What a worker does: nothing comes back, or what went wrong."""
    memory, watch, resumed = PeakMemory(), Stopwatch(), bool(checkpoint.available(job.config.out))
    torch.compiler.reset()  # the compilations of the training before count against this one's
    try:
        pretrain.run(job.config)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    seconds = None if resumed else round(watch.seconds, 1)  # of a part of it, they would mislead
    flags = {name: value for name, value in dataclasses.asdict(job.config).items() if name not in ("out", "shared")}
    told = {
        "name": job.name,
        "about": job.recipe.about,
        "training": without_places(json.loads(json.dumps(flags, default=str))),
        "seconds": seconds,
        "peak_megabytes": memory.megabytes,
        "provenance": provenance(seconds),
    }
    write_json(job.done, told)
    return {}


def _told(job: Training, failed: dict[str, dict[str, str]]) -> dict[str, Any]:
    head = {"label": job.label, "about": job.recipe.about, "digest": job.digest}
    if job.digest in failed:
        return {**head, **failed[job.digest]}
    done = json.loads(job.done.read_text(encoding="utf-8"))
    return {**head, **{name: done[name] for name in ("training", "seconds", "peak_megabytes", "provenance")}}


def bench_cells(config: AblateConfig, trainings: Sequence[Training]) -> list[Cell]:
    """What is measured of each: before and after aligning, on held-out bodies and (the oracle) on source bodies."""
    scale, cells = config.measured, []
    for job in trainings:
        for scenario in scale.scenarios:
            plain = Cell(
                str(job.policy),
                scenario=scenario,
                seed=seeds_of(config.split)[0],
                bodies=scale.bodies,
                episodes=scale.episodes,
                play=scale.play,
                label=job.label,
                features="" if job.config.recordings.features is None else str(job.config.recordings.features),
                weights="" if config.weights is None else str(config.weights),
            )
            cell = changed(plain, job.recipe.bench)
            oracle = dataclasses.replace(with_oracle(cell)[1], method=cell.method, settings=cell.settings)
            cells += [cell, oracle, dataclasses.replace(cell, method="frozen", settings={}, play=(max(cell.play),))]
    return list({json.dumps([c.checkpoint, c.label, c.measured()]): c for c in cells}.values())
