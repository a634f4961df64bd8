"""The loop: stops on request, stops on NaN, keeps the right checkpoints, tells its numbers."""

import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from align.rehearsing import seeded_state, state_for
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.loop import LoopConfig, run_training
from selfalign.train.step import NonFiniteLoss, train_step

QUIET = LoopConfig(tensorboard=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_and_the_training_goes_on_from_there(small_sources, tmp_path, monkeypatch, number):
    straight = seeded_state(small_sources)
    assert run_training(straight, tmp_path / "straight", QUIET)

    stopped = seeded_state(small_sources)
    after_backward = stopped.objective.after_backward

    def in_the_second_step() -> dict[str, float]:
        if stopped.step == 1:
            signal.raise_signal(number)
        return after_backward()

    monkeypatch.setattr(stopped.objective, "after_backward", in_the_second_step)
    before = signal.getsignal(number)
    assert not run_training(stopped, tmp_path / "stopped", QUIET)
    assert signal.getsignal(number) == before
    assert [p.name for p in checkpoint.available(tmp_path / "stopped")] == ["step-0000002.pt"]

    resumed = state_for(small_sources)
    assert run_training(resumed, tmp_path / "stopped", QUIET)
    expected = unique_tensors(straight.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unique_tensors(resumed.model).items())


def test_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_its_batch(small_sources, tmp_path):
    state = state_for(small_sources)
    with torch.no_grad():
        state.model.action_out.bias[0] = torch.nan
    before = {name: t.clone() for name, t in unique_tensors(state.model).items()}
    contexts = [c.clone() for c in state.objective.coordinates]
    with pytest.raises(
        NonFiniteLoss, match=r"step 0: the loss is nan .*batch is in .*nonfinite-step-0000000-rank-0.pt"
    ) as e:
        run_training(state, tmp_path, QUIET)
    for name, tensor in unique_tensors(state.model).items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name
    assert all(torch.equal(a, b) for a, b in zip(contexts, state.objective.coordinates, strict=True))
    saved = torch.load(tmp_path / "nonfinite-step-0000000-rank-0.pt", weights_only=True)
    batch = e.value.part
    assert saved["part"]["slots"] == [0, 3]
    assert torch.equal(saved["part"]["play"]["transition"]["actions"]["values"], batch.play.transition.actions.values)
    assert torch.equal(saved["part"]["demonstrations"]["noise"]["actions"], batch.demonstrations.noise.actions)


def test_a_gradient_that_is_not_finite_stops_before_the_update(small_sources):
    state = state_for(small_sources)
    state.model.action_out.weight.register_hook(lambda grad: grad * torch.inf)
    before = {name: t.clone() for name, t in unique_tensors(state.model).items()}
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient's norm is"):
        train_step(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unique_tensors(state.model).items())


def test_old_checkpoints_are_pruned_by_policy(small_sources, tmp_path):
    state = state_for(small_sources)
    for state.step in range(1, 8):
        checkpoint.save(state, tmp_path, keep=2, keep_every=3)
    assert [int(p.stem[-7:]) for p in checkpoint.available(tmp_path)] == [3, 6, 7]
    checkpoint.save(state, tmp_path, keep=1)
    assert [int(p.stem[-7:]) for p in checkpoint.available(tmp_path)] == [7]


@pytest.mark.parametrize("name", ["log_every", "save_every", "keep", "validate_every", "keep_every"])
def test_never_is_no_interval(name):
    with pytest.raises(ValueError, match=rf"{name}=0 \(at least 1\)"):
        LoopConfig(**{name: 0})


def test_every_loss_alpha_and_age_are_shown_as_they_are_logged(small_sources, tmp_path, capsys):
    run_training(state_for(small_sources), tmp_path, LoopConfig(log_every=2, tensorboard=False))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.split(":")[0] for line in shown] == ["step 2", "step 4", "step 6"]
    for line, numbers in zip(shown, logged, strict=True):
        losses = [name for name in numbers if name.startswith("loss/")]
        assert {"loss/total", "loss/action", "loss/ttt", "loss/perception", "loss/dynamics"} < set(losses)
        assert all(f"{name[5:]} {numbers[name]:.3f}" in line for name in losses)
        assert f"tanh(alpha) {numbers['ttt/mean_tanh_alpha']:.3g}" in line
        assert f"age {numbers['slots/mean_age']:.3g}" in line


def test_what_a_killed_training_logged_is_not_there_twice(small_sources, tmp_path):
    config = LoopConfig(log_every=1, save_every=2)
    state = state_for(small_sources)
    assert run_training(state, tmp_path, config)
    for path in checkpoint.available(tmp_path):
        path.unlink()
    state.step = 3  # killed during step 6: the newest checkpoint is older than the newest line, which is cut off
    checkpoint.save(state, tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-5])
    assert run_training(state_for(small_sources), tmp_path, config)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]


class Wandb:
    """What `wandb` is to us: `init`, and a run with `log` and `finish`."""

    def __init__(self):
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.inits.append(settings)
        return SimpleNamespace(log=lambda numbers, step: self.logged.append((step, numbers)), finish=self.finish)

    def finish(self):
        self.finished += 1


def test_numbers_go_to_the_log_and_to_wandb(small_sources, tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = LoopConfig(log_every=2, tensorboard=False, wandb="robots", diagnose_every=3, validate_every=4)
    run_training(state_for(small_sources), tmp_path, config, validate=lambda s: {"val/step": float(s.step)})
    run_training(state_for(small_sources), tmp_path, config)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert ["ttt/gradient_cosine" in line for line in lines] == [False, True, True]
    assert [line.get("val/step") for line in lines] == [None, 4.0, 6.0]
    for (step, numbers), line in zip(wandb.logged, lines, strict=True):
        assert step == line["step"] and numbers.items() <= line.items() and "grad_norm/action" in numbers
    first, second = wandb.inits
    assert first["project"] == "robots" and first["id"] == second["id"] and first["resume"] == "allow"
    assert wandb.finished == 2


def test_wandb_that_is_not_there_names_its_extra(small_sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"selfalign\[wandb\]"):
        run_training(state_for(small_sources), tmp_path, LoopConfig(tensorboard=False, wandb="robots"))
