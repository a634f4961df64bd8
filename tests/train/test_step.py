"""What a step can do beside the plain one: parts, averages, bfloat16, frozen parts, norms of parts."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from align.rehearsing import seeded_state, state_for, tiny_model
from selfalign.model import ttt as ttt_module
from selfalign.model.cost import training_memory
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.autocast import keep_float32
from selfalign.train.export import finished
from selfalign.train.parts import freeze, part_of
from selfalign.train.step import OptimConfig, train_step


def optim(**changes) -> OptimConfig:
    return OptimConfig(warmup_steps=2, **changes)


def test_the_rate_is_torchs_warm_up_and_cosine():
    config = OptimConfig(learning_rate=3e-3, warmup_steps=5, final_fraction=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    rise = LinearLR(optimizer, start_factor=1 / 5, end_factor=1.0, total_iters=4)
    fall = CosineAnnealingLR(optimizer, T_max=20 - 5, eta_min=3e-4)
    schedule = SequentialLR(optimizer, [rise, fall], milestones=[5])
    for step in range(20):
        assert config.rate(step, 20) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        schedule.step()
    assert config.rate(20, 20) == pytest.approx(3e-4)


def test_a_step_is_clipped_adamw_which_never_decays_w(small_sources):
    """Against torch's plain AdamW over named parameters, after clipping by the textbook."""
    config = optim(weight_decay=0.5, clip_norm=0.1)
    state = seeded_state(small_sources, optim=config)
    assert all(group["fused"] for group in state.optimizer.param_groups)
    named = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    twin = {name: p.detach().clone().requires_grad_() for name, p in named.items()}
    fast = [name for name in named if name.endswith((".W1", ".b1"))]
    decayed = [name for name, p in named.items() if p.dim() > 1 and name not in fast]
    assert fast and decayed
    groups = [{"params": [twin[n] for n in decayed], "weight_decay": 0.5}]
    groups.append({"params": [twin[n] for n in named if n not in decayed], "weight_decay": 0.0})
    plain = torch.optim.AdamW(groups, lr=config.rate(0, 6), betas=config.betas, fused=False, foreach=False)
    seen = {}
    state.objective.after_backward = lambda run=state.objective.after_backward: (
        seen.update({name: p.grad.clone() for name, p in named.items() if p.grad is not None}) or run()
    )
    norm = train_step(state)["optim/grad_norm"]
    assert norm > 0.1
    assert math.hypot(*(float(g.norm()) for g in seen.values())) == pytest.approx(0.1, rel=1e-3)
    for name, grad in seen.items():
        twin[name].grad = grad
    plain.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter, twin[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_training_keeps_what_inspect_counts(small_sources):
    """But for what has no gradient (of the last VLM layer only keys and values are computed)."""
    state = state_for(small_sources, slots=1)
    train_step(state)
    told, held = training_memory(state.model), [*state.model.parameters(), *state.model.buffers()]
    held += [p.grad for p in state.trainable if p.grad is not None]
    held += [t for moments in state.optimizer.state.values() for t in moments.values() if t.dim()]
    held += [p for p in state.trainable if p.grad is None for _ in range(3)]
    assert sum(t.numel() * t.element_size() for t in held) == told.model
    slots = [*state.objective.coordinates, *state.objective.state.first, *state.objective.state.second]
    assert sum(t.numel() * t.element_size() for t in slots) == told.slot * 3 // 4  # the gradient is gone


@pytest.mark.parametrize("wrong", [{"clip_norm": 0.0}, {"learning_rate": -1.0}, {"final_fraction": 2.0}])
def test_settings_that_make_no_sense_are_said(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))}"):
        OptimConfig(**wrong)


def test_a_batch_in_parts_gives_the_gradients_of_the_whole(small_sources):
    whole = seeded_state(small_sources, slots=4)
    expected = [train_step(whole) for _ in range(3)]
    parts = seeded_state(small_sources, slots=4, optim=optim(accumulate=2))
    for numbers in expected:
        assert train_step(parts) == pytest.approx(numbers, rel=1e-3)
    for a, b in zip(whole.objective.coordinates, parts.objective.coordinates, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_slots_that_cannot_be_cut_into_equal_parts_are_refused(small_sources):
    with pytest.raises(ValueError, match="3 slots cannot be cut into 2 equal parts"):
        train_step(state_for(small_sources, optim=optim(accumulate=2)))


def test_the_average_is_the_formula_and_is_what_is_shipped(small_sources, tmp_path):
    state = state_for(small_sources, optim=optim(ema_decay=0.7))
    expected = state.model.action_out.weight.detach().clone()
    for _ in range(3):
        train_step(state)
        expected = 0.7 * expected + 0.3 * state.model.action_out.weight.detach()
    own = {name: tensor.clone() for name, tensor in unique_tensors(state.model).items()}
    shipped = finished(state)
    torch.testing.assert_close(shipped.action_out.weight.detach(), expected)
    assert torch.equal(shipped.embed_tokens.weight, state.ema.values["embed_tokens.weight"])
    with state.ema.in_place():
        assert torch.equal(state.model.action_out.weight, shipped.action_out.weight)
    assert all(torch.equal(own[name], tensor) for name, tensor in unique_tensors(state.model).items())

    other = state_for(small_sources, optim=optim(ema_decay=0.7))
    path = checkpoint.save(state, tmp_path)
    checkpoint.restore(other, path)
    assert all(torch.equal(v, other.ema.values[name]) for name, v in state.ema.values.items())
    with pytest.raises(ValueError, match="was made with a moving average"):
        checkpoint.restore(state_for(small_sources), path)


def test_bf16_multiplies_large_matrices_and_leaves_w_alone(small_sources, monkeypatch):
    plain, model = train_step(seeded_state(small_sources)), tiny_model()
    keep_float32(model, torch.device("cpu"))
    state = seeded_state(small_sources, model=model, optim=optim(precision="bf16"))
    seen: dict[str, set[torch.dtype]] = {}

    def note(name):
        return lambda module, args, out: seen.setdefault(name, set()).add(out.dtype)

    blocks = model.mixture.experts["action"].blocks
    large = {"q_proj": blocks[0].q_proj, "theta_q": blocks[0].ttt.theta_q, "down": blocks[1].mlp.down_proj}
    small = {"action_out": model.action_out, "action_in": model.action_in, "time": model.time["action"].mlp_out}
    for name, module in {**large, **small}.items():
        module.register_forward_hook(note(name))
    fast = ttt_module.fast_linear

    def noted(x, W1, b1):
        out = fast(x, W1, b1)
        seen.setdefault("W", set()).update({x.dtype, W1.dtype, out.dtype})
        return out

    monkeypatch.setattr(ttt_module, "fast_linear", noted)
    mixed = train_step(state)
    assert all(seen[name] == {torch.bfloat16} for name in large)
    assert all(seen[name] == {torch.float32} for name in [*small, "W"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in state.trainable if p.grad is not None} == {torch.float32}
    losses = {name: value for name, value in plain.items() if name.startswith("loss/")}
    assert {name: mixed[name] for name in losses} == pytest.approx(losses, rel=0.03)
    assert mixed["loss/total"] != plain["loss/total"]


def test_frozen_parts_stay_and_the_others_learn(small_sources):
    model = tiny_model()
    freeze(model, ("vlm", "ttt"))
    state = state_for(small_sources, model=model)
    before = {name: tensor.clone() for name, tensor in unique_tensors(model).items()}
    for _ in range(2):
        train_step(state)
    moved = {part_of(name) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"vision", "action", "alignment", "prior"}  # of vision, the connector
    assert "grad_norm/vlm" not in train_step(state)


def test_what_cannot_be_frozen_is_said():
    with pytest.raises(ValueError, match="no part towers to freeze"):
        freeze(tiny_model(), ("towers",))
    with pytest.raises(ValueError, match="nothing left to train"):
        freeze(tiny_model(), ("vision", "vlm", "action", "alignment", "ttt", "prior"))


def test_norms_of_parts_make_up_the_norm_of_the_gradient(small_sources):
    state = state_for(small_sources, optim=optim(clip_norm=1e9))
    numbers = train_step(state)
    norms = {name: value for name, value in numbers.items() if name.startswith("grad_norm/")}
    assert set(norms) == {f"grad_norm/{part}" for part in ("vision", "vlm", "action", "alignment", "ttt", "prior")}
    assert math.hypot(*norms.values()) == pytest.approx(numbers["optim/grad_norm"], rel=1e-5)
    fast = [w.grad.flatten() for layer in state.model.ttt_layers for w in (layer.W1, layer.b1)]
    assert norms["grad_norm/prior"] == pytest.approx(float(torch.cat(fast).norm()), rel=1e-5)
