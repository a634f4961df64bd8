"""What a process keeps between jobs, since it costs seconds to make: an open policy, and simulations of one robot."""

from pathlib import Path

from selfalign.bench.rollout import Arena
from selfalign.checkpoint import load
from selfalign.policy import Policy
from selfalign.sim.bodies import BodySpec
from selfalign.sim.robots import RobotSpec

_policies: dict[tuple[str, tuple[int, ...]], Policy] = {}
"""By the directory, and when its files were written: a calibration may have come meanwhile."""
_arenas: dict[RobotSpec, Arena] = {}


def policy_of(checkpoint: str | Path) -> Policy:
    """The policy of a checkpoint directory; another one's is dropped first, for the sake of memory.

    Errors are those of `load`.
    """
    folder = Path(checkpoint)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    key = str(checkpoint), tuple(file.stat().st_mtime_ns for file in files)
    if key not in _policies:
        _policies.clear()
        _policies[key] = load(checkpoint)
    return _policies[key]


def arena_of(body: BodySpec) -> Arena:
    """The arena of the body's robot; another robot's is closed first, for the sake of memory."""
    if body.robot not in _arenas:
        close_arenas()
        _arenas[body.robot] = Arena(body.robot)
    return _arenas[body.robot]


def close_arenas() -> None:
    """Frees the simulations that jobs in this process have made."""
    while _arenas:
        _arenas.popitem()[1].close()
