"""Batches that are fetched ahead: the same with any number of workers, resumable, other ones on each rank."""

import pytest
import torch

from align.rehearsing import rehearsal_config, tiny_model
from selfalign.align.rehearsal import make_objective
from selfalign.train.world import ALONE, World

SCHEMES = ("rehearsal", "per_body", "global")


def objective(sources, scheme="rehearsal", workers=0, world=ALONE, **changes):
    settings = {"slots": 4, "max_age": 2, "widen_steps": 5, **changes}
    made = make_objective(tiny_model(), sources, rehearsal_config(scheme, **settings), world, workers)
    torch.manual_seed(3)
    return made


def tensors(batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for part in (batch.play, batch.demonstrations):
        part.map(lambda tensor: found.append(tensor) or tensor)
    return found


def steps(drawing, count: int) -> list[list[torch.Tensor]]:
    """The batches of so many steps, in which nothing is computed."""
    found = []
    for _ in range(count):
        (batch,) = drawing.draw(1)
        found.append(tensors(batch))
        drawing.after_backward()
    return found


def same(a, b) -> bool:
    return len(a) == len(b) and all(len(x) == len(y) and all(map(torch.equal, x, y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batches_are_the_same_with_any_number_of_workers_and_go_on_at_any_step(small_sources, scheme):
    expected = steps(objective(small_sources, scheme), 6)
    assert not same(expected[:1], expected[1:2])
    ahead = objective(small_sources, scheme, workers=2)
    assert same(steps(ahead, 3), expected[:3])
    place, noise = ahead.state_dict(), torch.get_rng_state()
    assert same(steps(ahead, 3), expected[3:])
    ahead.close()
    for workers in (0, 1):
        resumed = objective(small_sources, scheme, workers=workers)
        resumed.load_state_dict(place)
        torch.set_rng_state(noise)
        assert same(steps(resumed, 3), expected[3:])
        resumed.close()


def test_going_back_drops_what_was_fetched_ahead(small_sources):
    drawing = objective(small_sources, workers=1)
    steps(drawing, 1)
    place, noise = drawing.state_dict(), torch.get_rng_state()
    expected = steps(drawing, 2)
    drawing.load_state_dict(place)
    torch.set_rng_state(noise)
    assert same(steps(drawing, 2), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_have_batches_of_their_own_that_together_are_the_whole(small_sources, workers):
    parts = []
    for rank in (None, 0, 1):
        world = ALONE if rank is None else World(rank, 2)
        parts.append(steps(objective(small_sources, workers=workers, world=world), 3))
    whole, first, second = parts
    assert not same(first, second)
    joined = [list(map(torch.cat, zip(a, b, strict=True))) for a, b in zip(first, second, strict=True)]
    assert same(whole, joined)
