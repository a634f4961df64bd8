"""No task of the alignment suffix sees its own label: shown with gradients, through all layers."""

from dataclasses import replace

import pytest
import torch

from selfalign.model.alignment import AlignmentInputs, AlignmentLayout
from selfalign.model.losses import ALIGNMENT, FlowNoise


def velocities(model, batch, inputs):
    time = torch.full((batch.observation.batch_size,), 0.4)
    timed = model.time[ALIGNMENT](model.alignment.embed(inputs), time)
    prefix = model.prefix(batch.observation)
    out = model.mixture.suffix(ALIGNMENT, *timed, model.layout.mask(), prefix, model.prior())
    return model.alignment.velocities(out.tokens)


@pytest.fixture
def inputs(batch):
    state, actions, following = batch.observation.state, batch.actions.values, batch.next_features
    tensors = [torch.randn_like(x).requires_grad_() for x in (state, actions, following, following, actions)]
    return AlignmentInputs(*tensors)


READS = {
    # task: what its output may depend on; everything else must have a gradient of exactly zero
    "state": {"noisy_state"},
    "next_features": {"noisy_state", "actions", "noisy_next"},
    "actions": {"noisy_state", "next_features", "noisy_actions"},
}


@pytest.mark.parametrize("task", READS)
def test_a_task_reads_its_evidence_and_never_its_label(model, batch, inputs, task):
    output = getattr(velocities(model, batch, inputs), task)
    names = list(vars(inputs))
    gradients = torch.autograd.grad(output.square().sum(), [getattr(inputs, n) for n in names], allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        moved = gradient is not None and bool(gradient.abs().max() > 0)
        assert moved == (name in READS[task]), f"{task} from {name}"


def test_layout_covers_the_suffix_without_gap():
    layout = AlignmentLayout(horizon=6, next_tokens=3)
    ranges = [
        layout.perception,
        layout.dynamics_actions,
        layout.dynamics_next,
        layout.inverse_next,
        layout.inverse_actions,
    ]
    assert [i for r in ranges for i in range(r.start, r.stop)] == list(range(layout.length))


def test_dynamics_of_one_pooled_token_is_the_mean_over_its_tokens(model):
    out = torch.randn(2, model.layout.length, model.config.alignment.width)
    pooled = out[:, model.layout.dynamics].mean(1)
    expected = model.alignment.dynamics_head(pooled)
    torch.testing.assert_close(model.alignment.velocities(out).next_features[:, 0], expected)


def test_a_sample_without_a_next_observation_counts_in_perception_alone(model, batch):
    size = batch.observation.batch_size
    masked = replace(batch, next_mask=torch.arange(size) > 0)
    noise, time = FlowNoise.like(batch), torch.full((size,), 0.4)

    def of(given):
        return model.losses(given, model.prior(), noise=noise, time=time, parts=(ALIGNMENT,), reduction="none")

    whole, partial = of(batch), of(masked)
    assert partial.dynamics[0] == 0 and partial.inverse[0] == 0 and whole.dynamics[0] > 0 and whole.inverse[0] > 0
    torch.testing.assert_close(partial.perception, whole.perception)
    torch.testing.assert_close((partial.dynamics[1:], partial.inverse[1:]), (whole.dynamics[1:], whole.inverse[1:]))
