"""A training that torchrun starts in several processes, for test_parallel.py: four steps, and two of them again."""

import sys
from pathlib import Path

import torch

from align.rehearsing import make_sources, seeded_state
from selfalign.data.cache import EpisodeCache
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.export import finished
from selfalign.train.step import OptimConfig, TrainState, train_step
from selfalign.train.world import ALONE, World, open_world

STEPS = 4


def fresh(cache: Path, world: World = ALONE, strategy: str = "ddp", accumulate: int = 1) -> TrainState:
    optim = OptimConfig(warmup_steps=2, accumulate=accumulate, ema_decay=0.5)
    sources = make_sources(EpisodeCache.open(cache))
    return seeded_state(sources, total=STEPS, slots=4, optim=optim, world=world, strategy=strategy)


def main(strategy: str, cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with open_world() as world:
        state, rows = fresh(cache, world, strategy, accumulate=2), []
        for _ in range(STEPS):
            if state.step == STEPS // 2:
                saved = checkpoint.save(state, out)
            rows.append(world.mean(train_step(state)))
        resumed = fresh(cache, world, strategy, accumulate=2)
        checkpoint.restore(resumed, saved)
        later = [world.mean(train_step(resumed)) for _ in range(STEPS // 2)]
        models = [finished(s) for s in (state, resumed)]
        if world.main:
            tensors = [unique_tensors(model) for model in models]
            torch.save({"rows": rows, "later": later, "models": tensors, "size": world.size}, out / "result.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
