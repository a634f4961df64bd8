"""A simulated robot over the wire: it sees, asks a policy server, and moves.

    selfalign play --out play --scenario camera                          # a body nobody has seen plays
    selfalign align --play play --out contexts/my_robot.safetensors      # its context
    selfalign serve --contexts contexts &                                # one server for all robots
    python examples/simulated_robot.py --body play --embodiment my_robot

A real robot looks the same: only where observations come from and where actions go differs.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from selfalign.commands.evaluate import read_body
from selfalign.serve.client import ActionChunkBroker, Client
from selfalign.sim.envs import BodyEnv
from selfalign.sim.tasks import EPISODE_STEPS, Kind


@dataclass(frozen=True)
class Config:
    """Episodes of one body."""

    body: Path
    """JSON of the body, or the data set of its play."""
    embodiment: str | None = None
    """Its name on the server; None: the only one there."""
    address: str = "ws://127.0.0.1:8000"
    api_key: str | None = None
    task: Kind = "reach"
    episodes: int = 5
    steps: int | None = None
    """Control steps of an episode; None: as many as the task has."""
    execute: int = 4
    """Steps of a chunk before the next is asked for."""
    smoothing: float | None = None
    """Decay of the mean over overlapping chunks; None: follow the newest."""
    seed: int = 0


def main(config: Config) -> int:
    """Runs the episodes and returns how many succeeded."""
    body = read_body(config.body)
    successes = 0
    with Client(config.address, embodiment=config.embodiment, api_key=config.api_key) as client:
        env = BodyEnv(body, (config.task,), image_size=client.metadata["image_size"])
        seen = {f"observation.images.{camera}" for camera in client.metadata["cameras"]}
        seen |= {"observation.state", "task"}
        robot = ActionChunkBroker(client, config.execute, config.smoothing)
        for episode in range(config.episodes):
            client.reset(seed=config.seed + episode)
            robot.reset()
            observation, info = env.reset(seed=config.seed + episode)
            for _ in range(config.steps or EPISODE_STEPS[config.task]):
                action = robot.act({name: observation[name] for name in seen})
                observation, _, _, _, info = env.step(action)
            successes += bool(info["success"])
            print(f"{observation['task']}: {'done' if info['success'] else 'not done'}")
        env.close()
    print(f"{successes} of {config.episodes} episodes succeeded")
    return successes


if __name__ == "__main__":
    main(tyro.cli(Config))
