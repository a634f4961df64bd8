"""Samples and losses against the plain ways to them: raw observations, pixels, whole forwards."""

from dataclasses import replace

import pytest
import torch

from align.factory import make_play, raw_observation, small_policy
from baselines.factory import QUICK, given, make_demonstrations
from selfalign.align.bank import PlayBank
from selfalign.baselines import fit
from selfalign.baselines.method import Given
from selfalign.baselines.pad import inverse_loss, later_features
from selfalign.baselines.prompt import alignment_loss, with_prompt
from selfalign.baselines.samples import FlowSamples, Pictures, demonstrated, draw_rows, read_demonstrations, spread_rows
from selfalign.model.losses import ACTION, ALIGNMENT, LossWeights
from selfalign.model.policy import VLA
from selfalign.policy import Policy
from selfalign.types import ActionChunk, Transition


def test_demonstrations_are_what_acting_sees():
    """The twin: raw observations through `Policy.observation`, as the robot gives them, and chunks cut by hand."""
    policy, play, _ = given()
    episodes = [*make_demonstrations(1, 7, task="reach the red cube"), *make_demonstrations(2, 9, task="push")[1:]]
    stats = play.stats()
    batch = demonstrated(policy, read_demonstrations(policy, [*episodes, *make_demonstrations(1, 4)]), stats)
    samples = FlowSamples.fixed(batch, 0)
    ours = policy.model.losses(batch, noise=samples.noise, time=samples.time, parts=(ACTION,), reduction="none").action

    row = 0
    for episode in episodes:
        for frame in range(len(episode) - 4):
            observation = policy.observation(raw_observation(episode, frame, episode.task), stats)
            chunk = torch.zeros(1, 4, 5)
            chunk[0, :, :3] = torch.from_numpy(stats.normalize_action(episode.action[frame : frame + 4]))
            real = torch.tensor([[True, True, True, False, False]])
            one = Transition(observation, ActionChunk(chunk, dim_mask=real))
            noise, time = samples.noise[row : row + 1], samples.time[row : row + 1]
            losses = policy.model.losses(one, noise=noise, time=time, parts=(ACTION,))
            torch.testing.assert_close(ours[row], losses.action, rtol=1e-4, atol=1e-5)
            row += 1
    assert row == len(samples.time) == 3 + 5


def pictured(rows: int = 4, **changes):
    policy, play = small_policy(), make_play(3, 8)
    if changes:
        policy = Policy.from_model(VLA(replace(policy.model.config, **changes)).eval(), policy.settings)
    transitions = policy.transitions(play, play.stats())
    pictures = Pictures.of(policy, play.episodes, transitions)
    picked = torch.arange(len(pictures))[torch.randperm(len(pictures))[:rows]]
    return policy, pictures, transitions, picked


@pytest.mark.parametrize("changes", [{}, {"next_offset": 1}, {"next_pixels": 4}], ids=str)
def test_pads_loss_is_inverse_dynamics_on_the_same_transitions(changes):
    """The twin reads tokens and features that the frozen tower gave before; `pad` reads pixels."""
    policy, pictures, transitions, rows = pictured(**changes)
    torch.testing.assert_close(later_features(policy, pictures, rows), transitions.next_features[rows])
    samples = FlowSamples.fixed(pictures.batch(policy, rows), 1)
    ours = inverse_loss(policy, pictures, rows, samples)
    twin = policy.model.losses(transitions[rows], noise=samples.noise, time=samples.time, parts=(ALIGNMENT,)).inverse
    torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)


def test_pads_gradient_goes_through_both_moments():
    """Against finite differences, in double precision: the tower is far from linear at a float's step."""
    policy, pictures, _, rows = pictured()
    single = FlowSamples.fixed(pictures.batch(policy, rows), 1)
    policy.model.double().vision.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    samples = FlowSamples(single.batch.map(doubled), single.noise.map(doubled), single.time.double())
    tower = list(policy.model.vision.parameters())
    gradient = torch.autograd.grad(inverse_loss(policy, pictures, rows, samples), tower, allow_unused=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(tower, gradient, strict=True)]
    norm, step, losses = torch.cat([g.flatten() for g in gradient]).norm(), 1e-4, []
    for distance in (step, -2 * step):  # from where the last one has come
        with torch.no_grad():
            for parameter, g in zip(tower, gradient, strict=True):
                parameter += distance * g / norm
            losses.append(float(inverse_loss(policy, pictures, rows, samples)))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(norm), rel=0.01)


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def test_cameras_that_a_body_lacks_are_grey():
    policy, play = small_policy(cameras=("scene", "wrist")), make_play(2, 8)
    transitions = policy.transitions(play, play.stats())
    pictures = Pictures.of(policy, play.episodes, transitions)
    rows = torch.tensor([0, 5])
    samples = FlowSamples.fixed(pictures.batch(policy, rows), 1)
    twin = policy.model.losses(transitions[rows], noise=samples.noise, time=samples.time, parts=(ALIGNMENT,)).inverse
    torch.testing.assert_close(inverse_loss(policy, pictures, rows, samples), twin, rtol=1e-4, atol=1e-5)


def test_the_prompts_loss_is_that_of_aligning_without_a_cached_prefix():
    policy, play, _ = given()
    bank = PlayBank.build(policy, play, play.stats())
    transitions = policy.transitions(play, play.stats())
    prompted = with_prompt(Given(policy, play, (), 0, False).copied_policy(), 3)
    rows, weights = torch.tensor([1, 4, 30]), LossWeights(ttt=0.3, dynamics=2.0)
    loss = alignment_loss(prompted.model, bank, rows, torch.Generator().manual_seed(4), weights)
    samples = FlowSamples.draw(transitions[rows], torch.Generator().manual_seed(4))
    twin = prompted.model.losses(
        transitions[rows], noise=samples.noise, time=samples.time, parts=(ALIGNMENT,), weights=weights
    )
    torch.testing.assert_close(loss, twin.total, rtol=1e-4, atol=1e-5)
    plain = policy.model.losses(
        transitions[rows], noise=samples.noise, time=samples.time, parts=(ALIGNMENT,), weights=weights
    )
    assert abs(float((loss - plain.total).detach())) > 1e-4  # the prompt is read


@pytest.mark.parametrize(("count", "size"), [(10, 4), (4, 4), (3, 8)])
def test_rows_are_within_and_repeat_only_where_they_must(count, size):
    rows = draw_rows(count, size, torch.Generator().manual_seed(0))
    assert len(rows) == size and int(rows.min()) >= 0 and int(rows.max()) < count
    assert len(set(rows.tolist())) == min(count, size) or count < size
    spread = spread_rows(count, size).tolist()
    assert spread == sorted(set(spread)) and spread[0] == 0 and spread[-1] == count - 1 and len(spread) <= size


def test_fixed_times_are_spread_over_what_training_draws():
    policy, play, _ = given()
    batch = policy.transitions(play, play.stats())
    times = FlowSamples.fixed(batch, 0).time.sort().values
    drawn = torch.cat([FlowSamples.draw(batch, torch.Generator().manual_seed(i)).time for i in range(60)])
    quantiles = drawn.quantile((torch.arange(len(times)) + 0.5) / len(times))
    torch.testing.assert_close(times, quantiles, rtol=0.0, atol=0.04)


def test_pad_is_judged_on_play_that_it_was_not_fitted_to():
    policy, play, _ = given()
    still = fit("pad", policy, play, config={**QUICK["pad"], "steps": 0, "holdout": 0.5, "eval_samples": 5})
    stats, losses = play.stats(), []
    for part in play.split(0.5, 0):
        pictures = Pictures.of(policy, part.episodes, policy.transitions(part, stats))
        rows = torch.linspace(0, len(pictures) - 1, 5).round().long()
        fixed = FlowSamples.fixed(pictures.batch(policy, rows), 0)
        losses.append(float(inverse_loss(policy, pictures, rows, fixed).detach()))
    assert still.history["held_out"] == [pytest.approx(losses[1], rel=1e-5)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
