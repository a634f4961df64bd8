"""The page of results on speed and temperature of acting."""

from collections.abc import Iterator, Mapping
from typing import Any

from page_tables import markdown

from selfalign.bench.choose_acting import best, success
from selfalign.sim.tasks import KINDS


def acting(result: Mapping[str, Any]) -> Iterator[str]:
    """Success of each pair in a matrix of the plan `acting`."""
    bodies = len({row["name"] for entry in result["cells"] for row in entry["bodies"]})
    chosen, columns = best(result), [success(result, task) for task in (*KINDS, None)]
    yield "## How fast, and how surely, should it act?"
    yield (
        f"Success of {bodies} aligned *validation* bodies, by what displacements and noise are multiplied by "
        "([acting](acting.md)); the last column is the mean over tasks and scenarios, by which the pair in bold was "
        "chosen. At 1 and 1 the policy acts as it was trained."
    )
    rows = []
    for pair in columns[-1]:
        row = [f"{pair.speed:g}", f"{pair.temperature:g}", *(column[pair].percent() for column in columns)]
        rows.append([f"**{value}**" for value in row] if pair == chosen else row)
    yield markdown(("speed", "temperature", *KINDS, "all"), rows)
