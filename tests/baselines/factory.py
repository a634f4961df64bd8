"""A small policy, play and demonstrations of a made-up robot, and settings with which every method takes a moment."""

from align.factory import make_episode, make_play, small_policy
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.policy import Policy

QUICK = {
    "frozen": {},
    "selfalign": {"steps": 2},
    "pad": {"steps": 2, "batch_size": 4, "eval_samples": 6},
    "prompt": {"steps": 2, "tokens": 3},
    "lora": {"steps": 2, "rank": 2, "batch_size": 8},
    "finetune": {"steps": 2, "batch_size": 8},
}


def make_demonstrations(count: int = 2, length: int = 12, task: str = "reach the cube") -> list[Episode]:
    return [make_episode(500 + i, length, task=task, is_play=False) for i in range(count)]


def given() -> tuple[Policy, Play, list[Episode]]:
    return small_policy(), make_play(5, 14), make_demonstrations()
