"""`selfalign bench experts`: the scripted experts on every robot and task."""

from dataclasses import dataclass
from pathlib import Path

from selfalign.sim.experts import main


@dataclass(frozen=True)
class ExpertsConfig:
    """Measure the scripted experts on every robot and task."""

    episodes: int = 100
    json: Path | None = None
    seed: int = 0


def run(config: ExpertsConfig) -> None:
    """Measures, prints a table, and writes it."""
    main(config.episodes, config.json, seed=config.seed)
