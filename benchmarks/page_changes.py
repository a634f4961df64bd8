"""The page of results on distances: of unseen bodies from what was seen, and of changed ones from what they were."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from page_tables import markdown

from selfalign.bench.tables import drop, percent
from selfalign.data.perturb import LinearFrame
from selfalign.report.results import CellResult
from selfalign.sim import regions
from selfalign.sim.bodies import BodySpec, before_change
from selfalign.sim.regions import Region

STALE = "stale"
CIRCLE = np.arange(-180.0, 180.0, 0.1)
"""Angles among which the nearest is looked for, degrees."""


def unseen(cells: Sequence[CellResult]) -> Iterator[str]:
    """How far unseen bodies are from the nearest that a source may be."""
    measured = {
        "bearing of the camera in the scene": [
            _to_source(body.camera.azimuth, regions.bearing_region) for body in _bodies(cells, "camera")
        ],
        "bearing of the camera on the hand": [
            _to_source(body.wrist.bearing, regions.wrist_region) for body in _bodies(cells, "camera")
        ],
        "turn of the action frame": [
            _to_source(_frame_of(body).x_azimuth, regions.turn_region) for body in _bodies(cells, "action")
        ],
    }
    if not all(measured.values()):
        return
    yield "## How unseen is unseen?"
    yield (
        "Degrees between an unseen body and the nearest that sources may have, over all bodies that were measured with "
        "the shipped checkpoint. These are the angles that regions are cut by "
        "([regions.py](../src/selfalign/sim/regions.py)); all else about an unseen camera or frame is within the range "
        "of the sources."
    )
    rows = [
        [name, str(len(values)), f"{median(values):.0f}", f"{max(values):.0f}"] for name, values in measured.items()
    ]
    yield markdown(("", "bodies", "median", "at most"), rows)


def changes(cells: Sequence[CellResult]) -> Iterator[str]:
    """Success of each body that had been aligned before it changed, by how far it changed."""
    found = {cell.settings["scenario"]: cell for cell in cells if STALE in cell.conditions}
    if not {"camera", "action"} <= found.keys():
        return
    camera, action = found["camera"], found["action"]
    yield "## How far may a robot change?"
    yield (
        f"Each body of `{camera.path.name}`, with what was aligned before it changed: by how much the bearings of its "
        "two cameras did, or through what angle its frames turned (mirrored ones have none; scales change as well)."
    )
    yield markdown(("camera in the scene", "camera on the hand", "reaching"), _by_change(camera, _moved))
    yield markdown(("action frame", "state frame", "reaching"), _by_change(action, _turned))


def beyond(result: Mapping[str, Any] | None) -> Iterator[str]:
    """Success of bodies whose camera is outside of the sector of all others: `beyond.py`."""
    if result is None:
        return
    yield "## How far beyond its sources?"
    yield (
        "Reaching after aligning, with the scene's camera so many degrees beyond the sector of all others, sources and "
        f"unseen ones ({regions.BEARING_LIMIT:.0f} to either side), as the shipped checkpoint acts; `beyond.json`. "
        "*Expected* is what the verdicts promised, on average."
    )
    rows = []
    for part in result["summary"]:
        verdicts = [row["verdict"] for row in result["bodies"] if row["degrees"] == part["degrees"]]
        expected = mean(verdict["expected"]["success"] for verdict in verdicts)
        loss = drop({when: mean(verdict[when] for verdict in verdicts) for when in ("before", "after")})
        accepted = f"{part['accepted']} of {part['bodies']}"
        rows.append([f"{part['degrees']:g}°", percent(part["success"]), accepted, f"{100 * expected:.0f} %", loss])
    yield markdown(("beyond", "aligned", "accepted", "expected", "play loss"), rows)


def _by_change(cell: CellResult, change: Callable[[BodySpec, BodySpec], tuple[float, ...]]) -> list[list[str]]:
    """A row for each body, by how far it changed; NaN is what has no angle."""
    rows = []
    for row in cell.rows:
        body = BodySpec.from_dict(row["body"])
        success = row["success"][STALE]
        change_of = change(before_change(body, cell.settings["scenario"], row["seed"]), body)
        rows.append((change_of, f"{success['successes']} of {success['episodes']}"))
    return [[*map(_told, change_of), success] for change_of, success in sorted(rows, key=lambda row: _order(row[0]))]


def _order(change: tuple[float, ...]) -> list[float]:
    return [np.nan_to_num(value, nan=np.inf) for value in change]


def _told(angle: float) -> str:
    return "mirrored" if np.isnan(angle) else f"{angle:.0f}°"


def _moved(before: BodySpec, after: BodySpec) -> tuple[float, ...]:
    return abs(after.camera.azimuth - before.camera.azimuth), abs(after.wrist.bearing - before.wrist.bearing)


def _turned(before: BodySpec, after: BodySpec) -> tuple[float, ...]:
    pairs = (before.action_space, after.action_space), (before.state_space, after.state_space)
    return tuple(_angle(*(np.asarray(space.frame.axes) for space in pair)) for pair in pairs)


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees of the rotation that takes one frame's axes to another's; NaN where it takes a mirror, too."""
    between = second @ first.T
    if np.linalg.det(between) < 0:
        return np.nan
    return float(np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1))))


# ---- distances to what was seen ------------------------------------------------------------------------------------


def _bodies(cells: Sequence[CellResult], scenario: str) -> list[BodySpec]:
    """Those of which that, or all at once, is unseen; each once."""
    own = [cell for cell in cells if cell.settings["scenario"] in (scenario, "all")]
    return [*{row["name"]: BodySpec.from_dict(row["body"]) for cell in own for row in cell.rows}.values()]


def _frame_of(body: BodySpec) -> LinearFrame:
    frame = body.action_space.frame
    assert isinstance(frame, LinearFrame)
    return frame


def _to_source(angle: float, region: Callable[[float], Region | None]) -> float:
    """Degrees to the nearest angle of the source region."""
    sources = CIRCLE[[region(float(other)) == "source" for other in CIRCLE]]
    return float(np.abs((sources - angle + 180) % 360 - 180).min())
