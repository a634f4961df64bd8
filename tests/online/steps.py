"""Steps of the made-up robot of `align.factory`: it looks every so many actions of an episode."""

import numpy as np

from align.factory import make_episode
from selfalign.data.episodes import Episode
from selfalign.online.experience import Step, picture


def steps_of(episode: Episode, every: int = 2, chain: str = "a", time: float = 0.0) -> list[Step]:
    looks = list(range(0, len(episode), every))
    return [
        Step(
            chain=chain,
            index=index,
            time=time + look,
            pictures={camera: picture(frames[look]) for camera, frames in episode.images.items()},
            state=episode.state[look],
            executed=episode.action[max(0, look - every) : look],
        )
        for index, look in enumerate(looks)
    ]


def many_steps(count: int = 6, every: int = 2, seed: int = 0, length: int = 17, **changes) -> list[Step]:
    """Of `count` episodes, each a chain of its own."""
    episodes = [make_episode(100 * seed + i, length, **changes) for i in range(count)]
    times = 1000.0 * seed + np.arange(count) * length
    return [
        step
        for i, (episode, time) in enumerate(zip(episodes, times, strict=True))
        for step in steps_of(episode, every, f"{seed}-{i}", float(time))
    ]
