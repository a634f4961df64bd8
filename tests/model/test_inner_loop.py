"""The inner loop against the public TTT-Linear reference, against itself in its other form, and who depends on whom."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfalign.model.inner_loop import (
    FastWeights,
    MiniBatch,
    Norm,
    dual_step,
    inner_loop,
    learning_rates,
    position_scales,
    primal_step,
    reconstruction_grad,
)

GOLDENS = Path(__file__).parents[1] / "data" / "ttt"
STEPS = {"dual": dual_step, "primal": primal_step}


class Reference:
    """A golden case, and the reference's layer around our inner loop: rotary positions, projections, norms."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32):
        self.numbers = np.load(path)
        self.params = {
            name.removeprefix("param/"): self.read(name).to(dtype).requires_grad_()
            for name in self.numbers
            if name.startswith("param/")
        }
        self.x = self.read("in/x").to(dtype).requires_grad_()
        self.cotangent = self.read("in/cot").to(dtype)
        self.heads, self.size = int(self.numbers["cfg/heads"]), int(self.numbers["cfg/mini_batch"])

    def read(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.numbers[name])

    def rotated(self, x_BTHf: torch.Tensor) -> torch.Tensor:
        """Rotary positions that start again in every mini-batch; neighbouring numbers are pairs."""
        half = x_BTHf.shape[-1] // 2
        frequency = 1 / float(self.numbers["cfg/rope_theta"]) ** (torch.arange(half).float() / half)
        angle = ((torch.arange(x_BTHf.shape[1]) % self.size).float()[:, None] * frequency)[:, None]
        sin, cos, (a, b) = angle.sin(), angle.cos(), x_BTHf.unflatten(-1, (half, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x_BTHf.dtype)

    def scale(self) -> torch.Tensor:
        offset = self.params["learnable_token_idx"]
        if offset.dtype == torch.float32:
            return position_scales(offset)
        return offset + 1 / torch.arange(1, self.size + 1).float()  # the float64 twin keeps 1 / i in float32

    def run(self, step=dual_step) -> tuple[FastWeights, torch.Tensor]:
        p, x = self.params, self.x
        q, k, v = (F.linear(x, p[f"{name}_proj.weight"]).unflatten(-1, (self.heads, -1)) for name in "qkv")
        rate = learning_rates(
            x,
            p["learnable_ttt_lr_weight"][:, 0],
            p["learnable_ttt_lr_bias"][:, 0],
            float(self.numbers["cfg/base_lr"]),
            q.shape[-1],
        )
        state, out = inner_loop(
            FastWeights(*(p[name].expand(len(x), -1, -1, -1) for name in ("W1", "b1"))),
            self.rotated(q),
            self.rotated(k),
            v,
            rate,
            self.scale(),
            Norm(p["ttt_norm_weight"], p["ttt_norm_bias"]),
            step=step,
        )
        normed = F.layer_norm(out.flatten(2), x.shape[-1:], p["post_norm.weight"], p["post_norm.bias"], 1e-6)
        return state, F.linear(normed, p["o_proj.weight"])


@pytest.fixture(params=["tiny", "base", "remainder"])
def path(request) -> Path:
    return GOLDENS / f"{request.param}.npz"


def deviation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours - theirs).detach().abs().max())


@pytest.mark.parametrize("form", STEPS)
def test_outputs_and_states_are_the_references(path, form):
    reference = Reference(path)
    state, out = reference.run(STEPS[form])
    assert deviation(out, reference.read(f"out/{form}")) < 5e-6
    last = "state1" if "state1/W1_states" in reference.numbers else "state0"
    for name, ours in zip(("W1_states", "b1_states"), state, strict=True):
        assert deviation(ours, reference.read(f"{last}/{name}")) < 5e-6


@pytest.mark.parametrize("form", STEPS)
def test_gradients_through_the_loop_are_the_references(path, form):
    reference = Reference(path)
    (reference.run(STEPS[form])[1] * reference.cotangent).sum().backward()
    ours = {"x": reference.x.grad, **{name: p.grad for name, p in reference.params.items()}}
    names = [name.removeprefix("grad/") for name in reference.numbers if name.startswith("grad/")]
    assert {"x", "W1", "b1"} <= set(names)
    for name in names:
        assert deviation(ours[name], reference.read(f"grad/{name}")) < 2e-5, name


@pytest.mark.parametrize("form", STEPS)
def test_in_float64_nothing_but_rounding_is_left(form):
    reference = Reference(GOLDENS / "tiny.npz", torch.float64)
    _, out = reference.run(STEPS[form])
    assert deviation(out, reference.read(f"out64/{form}")) < 1e-12
    (out * reference.cotangent).sum().backward()
    for name, parameter in reference.params.items():
        assert deviation(parameter.grad, reference.read(f"grad64/{name}")) < 1e-10, name


def test_learning_rates_and_scales_are_the_references():
    reference = Reference(GOLDENS / "tiny.npz")
    p = reference.params
    rate = learning_rates(
        reference.x, p["learnable_ttt_lr_weight"][:, 0], p["learnable_ttt_lr_bias"][:, 0], 1.0, 8
    ).unflatten(1, (-1, reference.size))
    eta = torch.einsum("i,bnjh->bhnij", position_scales(p["learnable_token_idx"]), rate)
    assert deviation(eta, reference.read("pre0/eta")) < 1e-7


@pytest.fixture
def sequence() -> dict[str, torch.Tensor]:
    """Two samples, seven tokens, three heads of four numbers; mini-batches of three."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 7, 3, 4, dtype=torch.float64).unbind(0)
    return {"q": q, "k": k, "v": v, "rate": torch.rand(2, 7, 3).double(), "scale": position_scales(torch.zeros(3))}


@pytest.fixture
def state() -> FastWeights:
    torch.manual_seed(1)
    return FastWeights(0.3 * torch.randn(2, 3, 4, 4).double(), 0.3 * torch.randn(2, 3, 1, 4).double())


@pytest.fixture
def norm() -> Norm:
    torch.manual_seed(2)
    return Norm(1 + 0.3 * torch.randn(3, 4).double(), 0.3 * torch.randn(3, 4).double())


@pytest.mark.parametrize("causal", [True, False])
def test_dual_and_primal_form_agree_with_their_gradients(sequence, state, norm, causal):
    results = []
    for step in (dual_step, primal_step):
        leaves = [t.clone().requires_grad_() for t in (*state, *list(sequence.values())[:4])]
        last, out = inner_loop(FastWeights(*leaves[:2]), *leaves[2:], sequence["scale"], norm, causal=causal, step=step)
        grads = torch.autograd.grad((out.sin().sum() + last.W1.cos().sum() + last.b1.cos().sum()), leaves)
        results.append((out, *last, *grads))
    for dual, primal in zip(*results, strict=True):
        torch.testing.assert_close(dual, primal, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_update_is_gradient_descent_on_the_reconstruction(sequence, state, norm, step):
    """One token, one update: the same by autograd on the loss as it is written."""
    q, k, v, rate = (sequence[name][:, :1].transpose(1, 2) for name in ("q", "k", "v", "rate"))
    leaves = [w.clone().requires_grad_() for w in state]
    loss = ((norm(k @ leaves[0] + leaves[1]) - (v - k)).square().sum((-2, -1)) / 2 * rate[..., 0]).sum()
    dW, db = torch.autograd.grad(loss, leaves)
    after, out = step(state, MiniBatch(q, k, v, rate, torch.ones(1).double()), norm, True)
    torch.testing.assert_close(after.W1, state.W1 - dW)
    torch.testing.assert_close(after.b1, state.b1 - db)
    torch.testing.assert_close(out, q + norm(q @ after.W1 + after.b1))


def test_the_written_gradient_can_be_differentiated_again(norm):
    z = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: reconstruction_grad(z, t, norm), (z, target))


def dependence(sequence, state, norm, causal: bool) -> torch.Tensor:
    """[i, j]: True where the output of token i depends on v of token j."""
    v = sequence["v"].clone().requires_grad_()
    _, out = inner_loop(state, **{**sequence, "v": v}, norm=norm, causal=causal)
    rows = [torch.autograd.grad(out[:, i].sin().sum(), v, retain_graph=True)[0] for i in range(v.shape[1])]
    return torch.stack([row.abs().amax((0, 2, 3)) > 0 for row in rows])


def test_the_causal_loop_reads_no_later_token(sequence, state, norm):
    assert torch.equal(dependence(sequence, state, norm, True), torch.ones(7, 7, dtype=torch.bool).tril())


def test_the_bidirectional_chunk_reads_its_own_mini_batch_and_those_before(sequence, state, norm):
    chunk = torch.arange(7) // 3
    assert torch.equal(dependence(sequence, state, norm, False), chunk[:, None] >= chunk[None, :])


def test_both_variants_end_in_the_same_state(sequence, state, norm):
    ends = [inner_loop(state, **sequence, norm=norm, causal=causal)[0] for causal in (True, False)]
    torch.testing.assert_close(ends[0], ends[1])


def test_one_sequence_in_two_calls(sequence, state, norm):
    """The state is all that goes on, where a call ends with a mini-batch."""
    whole, out = inner_loop(state, **sequence, norm=norm)
    outs, carried = [], state
    for part in (slice(0, 3), slice(3, 7)):
        tokens = {name: x if name == "scale" else x[:, part] for name, x in sequence.items()}
        carried, piece = inner_loop(carried, **tokens, norm=norm)
        outs.append(piece)
    torch.testing.assert_close(torch.cat(outs, dim=1), out)
    torch.testing.assert_close(carried, whole)
