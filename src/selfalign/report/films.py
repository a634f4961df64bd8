"""`selfalign bench films`: bodies filmed before and after aligning, in the results' scenes.

    OUT/films.json               what is seen in each film, and how it went
    OUT/SCENARIO-TASK-BODY.gif   left: before aligning; right: the same scenes afterwards

Of the worst bodies, the scenes that fail come first; of typical ones, they are the first that were measured.

Everything is run again from the seeds of the results. What is filmed already is not filmed again, and films of what the
results no longer hold are removed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from selfalign.acting import Acting
from selfalign.bench import plan
from selfalign.bench.resident import arena_of, close_arenas
from selfalign.bench.rollout import RolloutConfig, RolloutResult, rollout
from selfalign.bench.subject import ALIGNED, BEFORE, identity_of
from selfalign.bench.workshop import Workshop
from selfalign.checkpoint import load
from selfalign.configs import below, refuse
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, digest, provenance, write_json
from selfalign.report.failures import Failing, typical, worst
from selfalign.report.reading import read_cells
from selfalign.report.results import CellResult
from selfalign.report.video import beside, panel, save_film
from selfalign.sim.bodies import BodySpec

FORMAT = "selfalign-films-1"
INDEX = "films.json"
WORST = "worst"
Which = Literal["worst", "typical"]


@dataclass(frozen=True)
class FilmsConfig:
    """Film bodies before and after aligning, the worst ones or typical ones, for `bench report`."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files of bench adapt, bench matrix and bench calibrate."""
    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory: that of the results. Results of other models are left out."""
    out: Path = Path("outputs/failures")
    """Folder of the films."""
    which: Which = WORST
    """"worst": bodies that act worst after aligning; "typical": those in the middle of their scenario and task."""
    bodies: int = 6
    """Bodies that are filmed."""
    of_each: int = 1
    """At most so many of each scenario and task."""
    episodes: int = 2
    """Episodes in each film."""
    size: int = 144
    """Pixels of a picture."""
    kilobytes: int = 300
    """Of each film, at most."""

    def __post_init__(self) -> None:
        wrong = below(self, bodies=1, of_each=1, episodes=1, size=32, kilobytes=10)
        if not self.results:
            wrong.append("results=() (at least one file)")
        refuse("bench films", wrong)


def run(config: FilmsConfig, *, show: bool = True) -> dict[str, Any]:
    """Films, and writes and returns what `films.json` holds.

    Raises:
        FileNotFoundError: no checkpoint, or a result that is not there.
        ValueError: a damaged file, or results in which the checkpoint's model does not fail.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    policy = load(config.checkpoint)
    own = [cell for cell in read_cells(config.results) if cell.fingerprint == policy.fingerprint()]
    failing = to_film(own, config.of_each, config.which)[: config.bodies]
    if not failing:
        raise ValueError(
            f"nothing to film: in these results no body fails with the model of {config.checkpoint}, which is "
            f"{policy.fingerprint()}"
        )
    keys = [_key(config, policy, one) for one in failing]
    there = read_films(config.out)
    films = {film["key"]: film for film in there if film["key"] in keys}
    kept = len(films)
    try:
        for number, (key, one) in enumerate(zip(keys, failing, strict=True), 1):
            console.print(f"{number}/{len(failing)} {one.cell.name}: {one.name}", markup=False)
            if key not in films:
                films[key] = {"key": key, **_film(config, policy, one)}
            told = [films[key] for key in keys if key in films]
            result = {"format": FORMAT, "films": told, "provenance": provenance(None if kept else watch.seconds)}
            write_json(config.out / INDEX, result)
    finally:
        close_arenas()
    for name in {film["file"] for film in there} - {film["file"] for film in films.values()}:
        (config.out / name).unlink()  # of other results
    console.print(f"Films of {len(films)} bodies in {config.out}")
    return result


def to_film(cells: Sequence[CellResult], of_each: int, which: Which = WORST) -> list[Failing]:
    """Bodies that can be met again, once each: those that fail, the worst first, or typical ones.

    Only what `align` made is met again: recipes have ways of their own, and `bench calibrate` asks no calibration.
    """
    found: dict[str, Failing] = {}
    plain = [c for c in cells if c.settings.get("method", "selfalign") == "selfalign" and "scenarios" not in c.settings]
    for failing in worst(plain, of_each) if which == WORST else typical(plain, of_each):
        if failing.row.get("seed") is not None:
            found.setdefault(_file(failing), failing)
    return list(found.values())


def read_films(folder: Path) -> list[dict[str, Any]]:
    """What `films.json` of a folder tells of the films that are there; none where it is not.

    Raises:
        ValueError: it is damaged, or something else.
    """
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return [film for film in data["films"] if (folder / film["file"]).is_file()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no films of `selfalign bench films`: {error}") from error


def caption(film: Mapping[str, Any]) -> str:
    """What is seen, in words: the body, how often it succeeded, and how the episodes shown ended."""
    counts = {name: f"{of['successes']} of {of['episodes']}" for name, of in film["success"].items()}
    shown = "; ".join(f"{one['instruction']}: {'done' if one['success'] else 'failed'}" for one in film["shown"])
    told = f"{film['cell']}: {film['body']}. Before {counts[BEFORE]}, after {counts[ALIGNED]}"
    measured = film.get("measured", {})
    if any(count != film["success"][name]["successes"] for name, count in measured.items()):
        told += f" (when it was measured {' and '.join(map(str, measured.values()))})"
    return f"{told}. Shown: {shown}."


def _key(config: FilmsConfig, policy: Policy, failing: Failing) -> str:
    """Of everything that a film depends on."""
    looks = {name: getattr(config, name) for name in ("episodes", "size", "kilobytes")}
    if config.which != WORST:
        looks["which"] = config.which
    told = [
        failing.cell.fingerprint,
        identity_of(policy),
        dict(failing.cell.settings),
        failing.row["body"],
        failing.row["seed"],
        looks,
    ]
    return digest(told)


def _file(failing: Failing) -> str:
    settings = failing.cell.settings
    return f"{settings['scenario']}-{settings['task']}-{failing.name}.gif"


def _film(config: FilmsConfig, policy: Policy, failing: Failing) -> dict[str, Any]:
    """Acts again, before and after, and writes the film; what is told of it."""
    results = act_again(config, policy, failing)
    after = results[ALIGNED].outcomes
    ranked = range(len(after))
    if config.which == WORST:
        ranked = sorted(ranked, key=lambda i: (after[i].success, after[i].progress))
    chosen = sorted(ranked[: config.episodes])
    sides = [
        [picture for i in chosen for picture in panel(results[name].outcomes[i], header)]
        for name, header in ((BEFORE, "before"), (ALIGNED, "after"))
    ]
    row, file = failing.row, _file(failing)
    save_film(beside(sides), config.out / file, max_bytes=1000 * config.kilobytes)
    return {
        "file": file,
        "which": config.which,
        "cell": failing.cell.name,
        "body": row["name"],
        "results": failing.cell.path.name,
        "success": {name: result.to_dict() for name, result in results.items()},
        "measured": {name: row["success"][name]["successes"] for name in results if name in row["success"]},
        "shown": [{"instruction": after[i].instruction, "success": after[i].success} for i in chosen],
    }


def act_again(config: FilmsConfig, policy: Policy, failing: Failing) -> dict[str, RolloutResult]:
    """The episodes of a row, from its seeds, filmed: before aligning and after."""
    body, seed, cell = BodySpec.from_dict(failing.row["body"]), failing.row["seed"], planned(config.checkpoint, failing)
    workshop, amount = Workshop(policy, body, seed), max(cell.play)
    acting = replace(policy, acting=cell.acting(policy.acting))
    run = RolloutConfig(
        (cell.task,),
        cell.episodes,
        seed,
        cell.execute,
        cell.num_steps,
        video_episodes=cell.episodes,
        video_size=config.size,
    )
    results = {}
    for name, one in ((BEFORE, replace(cell, method="frozen", settings={})), (ALIGNED, cell)):
        context = workshop.make(one, amount).fitted.context
        results[name] = rollout(acting, body, context, run, arena=arena_of(body))
    return results


def planned(checkpoint: Path, failing: Failing) -> plan.Cell:
    """What was measured of the body, as a cell of a matrix: other benchmarks say the same in fewer words."""
    settings = failing.cell.settings
    shared = ("scenario", "task", "seed", "bodies", "episodes", "play_length", "execute", "num_steps")
    told = {name: settings[name] for name in shared} | settings.get("acting", Acting().to_dict())
    if isinstance(settings["play"], int):
        return plan.Cell(str(checkpoint), play=(settings["play"],), **told)
    told |= {"settings": settings["settings"], "motion": settings["motion"]}
    return plan.Cell(str(checkpoint), play=tuple(settings["play"]), **told)
