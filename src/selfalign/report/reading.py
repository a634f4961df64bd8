"""Result files of the benchmarks, read as cells."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfalign.acting import Acting
from selfalign.bench.attempts import AT, RETURNED_PRIOR
from selfalign.bench.cell import ROLES
from selfalign.bench.plan import SAME_TEST
from selfalign.bench.subject import ALIGNED, BEFORE, RANDOM, acting_told, body_seed
from selfalign.report.results import ORACLE, SEEN_BEFORE, CellResult
from selfalign.sim.bodies import BodySpec
from selfalign.sim.regions import SCENARIOS

READ = ("bench adapt", "bench matrix", "bench ablate", "bench calibrate", "demo")
MATRIX, ABLATION = "selfalign-matrix-1", "selfalign-ablation-1"
STANDS_FOR = "stands_for"
NAMES = {"frozen": BEFORE, "selfalign": ALIGNED, "random": RANDOM}
"""Conditions by the names that a matrix has for them; other methods keep theirs, but for those of an ablation, where a
recipe has one way to a body: what it comes to is what is aligned."""


def read_cells(paths: Sequence[Path]) -> list[CellResult]:
    """The cells of result files, each with a name of its own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a result file of a benchmark that is read here.
    """
    cells: list[CellResult] = []
    for path in paths:
        cells += _read(path)
    count = Counter(cell.name for cell in cells)
    shared = {cell.path for cell in cells if count[cell.name] > 1}
    short = len({path.stem for path in shared}) == len(shared)

    def apart(cell: CellResult) -> CellResult:
        where = cell.path.stem if short else f"{cell.path.parent.name}/{cell.path.stem}"
        return replace(cell, name=f"{cell.name} ({where})") if count[cell.name] > 1 else cell

    return [apart(cell) for cell in cells]


def read_failures(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(what a cell of a matrix was to measure, why it failed)."""
    found = []
    for path in paths:
        data = _measured(_json(path))
        if isinstance(data, dict) and data.get("format") == MATRIX:
            failed = [entry for entry in data["cells"] if "error" in entry]
            found += [(f"{_name(entry)}, {entry['settings']['method']}", entry["error"]) for entry in failed]
    return found


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # or no text at all
        raise ValueError(f"{path} is not JSON: {error}") from error


def _of_recipes(data: Any) -> bool:
    """Whether it is an ablation: its trainings, and a matrix of them where they were measured."""
    return isinstance(data, dict) and data.get("format") == ABLATION


def _measured(data: Any) -> Any:
    return data.get("matrix") if _of_recipes(data) else data


def _read(path: Path) -> Iterator[CellResult]:
    told = _json(path)
    data, recipes = _measured(told), _of_recipes(told)
    try:
        if isinstance(data, dict) and data.get("format") == MATRIX:
            yield from _matrix(path, _aligned(data) if recipes else data)
        else:
            yield from _bodies(path, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of {', '.join(READ)}: {error!r}") from error


def _bodies(path: Path, part: Mapping[str, Any]) -> Iterator[CellResult]:
    """One cell, or one for each scenario where rows say which is theirs."""
    settings = part["settings"]
    rows: list[Mapping[str, Any]] = [
        {**row, "name": _body(row), "seed": _seed(row, settings["seed"])} for row in part["bodies"]
    ]
    for scenario in dict.fromkeys(row.get("scenario", settings.get("scenario")) for row in rows):
        own = [row for row in rows if row.get("scenario", settings.get("scenario")) == scenario]
        yield CellResult(
            f"{scenario}, {settings['task']}, seed {settings['seed']}{_acting(part)}",
            [row for row in own if row.get("role", "heldout") == "heldout"],
            [row for row in own if row.get("role") == "source"],
            {**settings, **acting_told(part), "scenario": scenario},
            part["fingerprint"],
            path,
            part["provenance"],
        )


def _body(row: Mapping[str, Any]) -> str:
    """The body's name, as it is called now: older files may call the same body otherwise."""
    return BodySpec.from_dict(row["body"]).name


def _seed(row: Mapping[str, Any], seed: int) -> int | None:
    """Of the body's play and scenes, as the benchmark has drawn it; None where the row has no place in one (a demo's).

    `bench adapt` and `bench matrix` count the bodies of a role, `bench calibrate` those of a scenario.
    """
    if "index" not in row:
        return None
    first = SCENARIOS.index(row["scenario"]) if "scenario" in row else ROLES.index(row.get("role", "heldout"))
    return body_seed(seed, first, row["index"])


# ---- matrices ------------------------------------------------------------------------------------------------------


def _matrix(path: Path, data: Mapping[str, Any]) -> Iterator[CellResult]:
    """Methods that met the same bodies of the same checkpoint, as conditions of one cell."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    seen: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in data["cells"]:
        if "error" not in entry:
            of_kind = seen if entry["settings"]["region"] == "source" else groups
            of_kind.setdefault((_name(entry, of_kind is seen), entry["fingerprint"]), []).append(entry)
    compared = {(_name(held_out[0], True), fingerprint) for (_, fingerprint), held_out in groups.items()}
    groups |= {key: [] for key in seen if key not in compared}  # measured alone
    for (name, fingerprint), held_out in groups.items():
        # Bodies of seen kinds play freely, however those play that are compared to them.
        sources = seen.get((_name(held_out[0], True) if held_out else name, fingerprint), [])
        _check_alike([*held_out, *sources])
        aligned = [entry for entry in held_out if _method(entry) == "selfalign"]
        first = (aligned or held_out or sources)[0]
        settings = {**first["settings"], **acting_told(first)}
        digests = {entry.get("digest") for entry in held_out}
        speeds = [speed for speed in data.get("speed", ()) if speed["digest"] in digests]
        rows = _merged(held_out)
        seen_rows, made = _seen(sources), data["provenance"]
        yield CellResult(name, rows, seen_rows, settings, fingerprint, path, made, speeds, first["label"])


def _check_alike(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ValueError` where cells of one name were not measured in the same way."""
    for name in SAME_TEST:
        values = {entry["settings"].get(name) for entry in entries}
        if len(values) > 1:
            raise ValueError(
                f"cells of {_name(entries[0])} have {name} {' and '.join(sorted(map(str, values)))}, and cannot be "
                "compared; give them labels, or files, of their own"
            )


def _aligned(data: Mapping[str, Any]) -> dict[str, Any]:
    """A matrix of recipes, in which the own way to a body of a recipe that is not aligned stands for aligning."""
    plain = {entry["label"] for entry in data["cells"] if entry["settings"]["method"] == "selfalign"}

    def told(entry: Mapping[str, Any]) -> Mapping[str, Any]:
        own = entry["label"] not in plain and entry["settings"]["method"] not in NAMES
        return {**entry, STANDS_FOR: "selfalign"} if own else entry

    return {**data, "cells": [told(entry) for entry in data["cells"]]}


def _method(entry: Mapping[str, Any]) -> str:
    return entry.get(STANDS_FOR, entry["settings"]["method"])


def _name(entry: Mapping[str, Any], any_motion: bool = False) -> str:
    own = entry["settings"]
    motion = "" if any_motion or own["motion"] == "free" else f", {own['motion']} play"
    return f"{entry['label']}: {own['scenario']}, {own['task']}, seed {own['seed']}{motion}{_acting(entry)}"


def _acting(part: Mapping[str, Any]) -> str:
    """How bodies acted, where that was not as the policy was trained."""
    return f", {Acting.from_dict(part['acting'])}" if part.get("acting") is not None else ""


def _merged(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each body, with every method at its largest amount, and at each amount where there are several."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries:
        method, shown = _method(entry), entry["settings"].get("shown")
        method = method if shown is None else f"{method} shown {shown}"
        condition = NAMES.get(method, method)
        for body in entry["bodies"]:
            empty = {"success": {}, "verdicts": {}, "costs": {}}
            name = _body(body)
            told = {"name": name, "body": body["body"], "seed": _seed(body, entry["settings"]["seed"])}
            row = rows.setdefault(name, {**told, **empty})
            amounts = sorted(body["results"], key=int)
            named = {f"{method}{AT}{amount}": body["results"][amount] for amount in amounts if len(amounts) > 1}
            for told_as, result in {condition: body["results"][amounts[-1]], **named}.items():
                _check_agree(entry, told_as, name, row["success"].get(told_as), result["success"])
                row["success"][told_as] = result["success"]
                row["costs"][told_as] = {cost: result[cost] for cost in COSTS}
                # The largest amount is the condition itself: one attempt, not two.
                if "verdict" in result and told_as != f"{method}{AT}{amounts[-1]}":
                    row["verdicts"][told_as] = result["verdict"]
                    if not result["verdict"]["accepted"]:
                        row.setdefault(RETURNED_PRIOR, []).append(told_as)
    return list(rows.values())


COSTS = ("robot_seconds", "fit_seconds", "peak_megabytes", "bytes_stored")
MEASURED = ("successes", "episodes", "mean_progress")
"""Of success: what a second measurement repeats. Seconds it does not."""


def _check_agree(
    entry: Mapping[str, Any], told_as: str, body: str, one: Mapping[str, Any] | None, other: Mapping[str, Any]
) -> None:
    """Raises `ValueError` where two cells of one name found different things under one condition of a body."""
    if one is not None and any(one.get(name) != other.get(name) for name in MEASURED):
        raise ValueError(
            f"two cells of {entry['label']} measured {told_as} of {body} and found different things: their settings "
            "differ; give them labels, or files, of their own"
        )


def _seen(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each source body, with the most play that it was given.

    Raises:
        ValueError: two cells found different things of a body that was given as much.
    """
    rows: dict[str, dict[str, Any]] = {}
    given: dict[tuple[str, str], int] = {}
    named = {"selfalign": ORACLE, "frozen": SEEN_BEFORE}
    for entry in (entry for entry in entries if _method(entry) in named):
        condition = named[_method(entry)]
        for body in entry["bodies"]:
            name, most = _body(body), max(map(int, body["results"]))
            success, before = body["results"][str(most)]["success"], given.get((name, condition), 0)
            row = rows.setdefault(name, {"name": name, "body": body["body"], "success": {}})
            if most == before:
                _check_agree(entry, condition, name, row["success"][condition], success)
            if most > before:
                row["success"][condition], given[name, condition] = success, most
    return list(rows.values())
