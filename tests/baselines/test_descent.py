"""The descent against closed forms, and how it stops."""

import math

import pytest
import torch
from torch import nn

from selfalign.baselines.descent import Descent, descend
from selfalign.train.bookmark import Bookmark


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_it_finds_the_minimum_of_a_quadratic():
    x, idle = parameter(3.0, -2.0), parameter(1.0)
    target = torch.tensor([0.5, 1.5])
    history = descend([x, idle], lambda _: (x - target).square().sum(), Descent(200, 0.1), seed=0)
    torch.testing.assert_close(x.detach(), target, rtol=0.0, atol=1e-3)
    assert idle.item() == 1.0  # the loss does not depend on it
    assert history.train[0] == 2.5**2 + 3.5**2
    assert (history.best_step, history.stopped) == (200, "all 200 steps taken")


def test_first_steps_are_adams():
    """Adam's first step has the size of the rate, whatever the gradient's (arXiv 1412.6980, section 2.1)."""
    x = parameter(5.0, -5.0)
    descend([x], lambda _: (x * torch.tensor([1.0, 30.0])).square().sum(), Descent(1, 0.25, clip_norm=1e9), seed=0)
    torch.testing.assert_close(x.detach(), torch.tensor([4.75, -4.75]))


def test_the_rate_falls_as_a_cosine():
    plan = Descent(10, 2.0)
    assert plan.rate(0) == 2.0 and math.isclose(plan.rate(5), 1.0) and 0 < plan.rate(9) < 0.1


def test_the_parameters_with_the_least_held_out_loss_are_kept():
    x = parameter(0.0)
    plan = Descent(100, 0.1, eval_every=1, patience=4)
    history = descend([x], lambda _: -x.sum(), plan, seed=0, held_out=lambda: abs(x.item() - 0.5))
    assert abs(x.item() - 0.5) <= 0.05
    assert history.stopped == "no better held-out loss in 4 measurements"
    assert len(history.train) == history.best_step + 4 == history.held_out_steps[-1]
    assert min(history.held_out) == abs(x.item() - 0.5)


def test_the_start_is_kept_where_nothing_is_better():
    x = parameter(1.0)
    history = descend([x], lambda _: -x.sum(), Descent(5, 0.1), seed=0, held_out=lambda: x.item())
    assert x.item() == 1.0 and history.best_step == 0


def test_a_loss_that_is_not_finite_ends_it_before_anything_moves():
    x = parameter(2.0)
    losses = iter([1.0, math.nan])
    history = descend([x], lambda _: x.sum() * next(losses), Descent(5, 0.5), seed=0)
    moved = x.item()
    assert math.isclose(moved, 1.5, rel_tol=1e-6) and len(history.train) == 1
    assert history.stopped == "the loss was not finite at step 2; lower the learning rate"
    endless = descend([x], lambda _: (x - x.detach()).sqrt().sum(), Descent(2, 0.5), seed=0)
    assert x.item() == moved and "not finite at step 1" in endless.stopped  # an infinite gradient of a finite loss


def test_held_out_losses_that_are_not_finite_are_told_as_none():
    x = parameter(0.0)
    values = iter([3.0, math.nan, 1.0])
    plan = Descent(2, 0.1, eval_every=1)
    history = descend([x], lambda _: x.sum(), plan, seed=0, held_out=lambda: next(values))
    assert history.held_out == [3.0, None, 1.0] and history.best_step == 2


def noisy(x: nn.Parameter, stop_at: int | None = None):
    """A quadratic whose minimum the generator moves; Ctrl-C at a step."""
    steps = iter(range(1, 1000))

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return (x - torch.randn(2, generator=generator)).square().sum()

    return loss_of


@pytest.mark.parametrize("judged", [True, False])
def test_an_interrupted_descent_goes_on_as_if_it_had_never_stopped(tmp_path, judged):
    plan, mark = Descent(40, 0.1, eval_every=4, patience=None), Bookmark(tmp_path / "fit.unfinished", {"of": "a test"})

    def run(x: nn.Parameter, stop_at: int | None = None, bookmark: Bookmark | None = None):
        held_out = (lambda: x.square().sum().item()) if judged else None
        return descend([x], noisy(x, stop_at), plan, seed=3, held_out=held_out, bookmark=bookmark)

    whole = parameter(3.0, -2.0)
    history = run(whole)
    for stop_at in (11, 6):  # of the steps that are left: steps 11 and, from 8 on, 14
        with pytest.raises(KeyboardInterrupt):
            run(parameter(3.0, -2.0), stop_at, mark)
    state = mark.read()
    assert state is not None and state["step"] == 12, "the last that was measured before step 14"
    late = parameter(-9.0, 9.0)  # where it begins means nothing any more
    assert run(late, None, mark) == history
    assert torch.equal(late, whole)
    again = parameter(1.0, 1.0)
    assert run(again, 1, mark) == history and torch.equal(again, whole)  # it was over: no further step


def test_the_bookmark_of_another_descent_or_a_damaged_one_is_refused(tmp_path):
    x, path = parameter(1.0, 1.0), tmp_path / "fit.unfinished"
    descend([x], noisy(x), Descent(4, 0.1, eval_every=2), seed=0, bookmark=Bookmark(path, {"rank": 2}))
    with pytest.raises(ValueError, match=r'another fit \(\{"rank": 2\}\).*remove'):
        descend([x], noisy(x), Descent(4, 0.1), seed=0, bookmark=Bookmark(path, {"rank": 3}))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"damaged or no unfinished fit.*to begin anew"):
        descend([x], noisy(x), Descent(4, 0.1), seed=0, bookmark=Bookmark(path, {"rank": 2}))


def test_without_steps_the_start_is_measured_and_kept():
    x = parameter(1.0)
    history = descend([x], lambda _: x.sum(), Descent(0, 0.1), seed=0, held_out=lambda: 2.0)
    assert (x.item(), history.held_out, history.train, history.stopped) == (1.0, [2.0], [], "all 0 steps taken")
