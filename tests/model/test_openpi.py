"""Numbers of openpi's PyTorch pi0 and pi0.5, on small random checkpoints that openpi itself wrote."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goldens import OPENPI, OpenPIGolden
from selfalign.model import flow, masks
from selfalign.model.layers import rotation, time_embedding
from selfalign.model.losses import ACTION, FlowNoise
from selfalign.model.openpi import load_openpi, run_checkpoint
from selfalign.model.openpi_names import tensor_names
from selfalign.model.weights import unique_tensors

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ACTIONS = {"rtol": 0, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-3, "atol": 1e-6}


@pytest.fixture(scope="module", params=OPENPI)
def golden(request):
    return OpenPIGolden.read(request.param)


@pytest.fixture(scope="module")
def model(golden):
    return load_openpi(golden.directory, **golden.settings)


@pytest.fixture(scope="module")
def noisy(golden):
    """x_t of the golden's noise and time."""
    inputs = golden.inputs
    return flow.interpolate(inputs["actions"], inputs["noise"], inputs["time"])


@pytest.fixture(scope="module")
def prefix(golden, model):
    with torch.no_grad():
        return model.whole_prefix(golden.batch.observation)


def action_loss(model, golden):
    noise = FlowNoise(golden.inputs["noise"], torch.zeros_like(golden.inputs["state"]), None)
    return model.losses(golden.batch, noise=noise, time=golden.inputs["time"], parts=(ACTION,), reduction="none").total


def test_images_and_words_are_embedded_alike(golden, model):
    observation, expected = golden.batch.observation, golden.outputs
    with torch.no_grad():
        patches = model.vision(observation.images[golden.info["cameras"][0]])
        tokens, mask = model.embed_prefix(observation)
    torch.testing.assert_close(patches[:, ::16], expected["siglip_patch_features.cam0"], **CLOSE)
    torch.testing.assert_close(model.image_proj(patches)[:, ::16], expected["image_embeds.cam0"], **CLOSE)
    torch.testing.assert_close(tokens[:, golden.rows], expected["prefix_embs"], **CLOSE)
    assert torch.equal(mask, expected["prefix_pad_masks"])


def test_state_actions_and_time_are_embedded_alike(golden, model, noisy):
    time, expected = golden.inputs["time"], golden.outputs
    torch.testing.assert_close(noisy, expected["x_t"], **CLOSE)
    torch.testing.assert_close(flow.velocity(golden.inputs["actions"], golden.inputs["noise"]), expected["u_t"])
    torch.testing.assert_close(time_embedding(time, model.config.action.width), expected["time_embedding"], **CLOSE)
    with torch.no_grad():
        tokens, cond = model.embed_actions(golden.inputs["state"], noisy, time)
    torch.testing.assert_close(tokens, expected["suffix_embs"], **CLOSE)
    if "adarms_cond" in expected:
        torch.testing.assert_close(cond, expected["adarms_cond"], **CLOSE)
    else:
        assert cond is None


def test_masks_and_positions_are_alike(golden, model):
    expected = golden.outputs
    valid, suffix = expected["prefix_pad_masks"], expected["suffix_embs"]
    rows = valid[:, golden.rows]
    of_prefix, of_suffix = expected["att_2d_mask"].split([rows.shape[1], suffix.shape[1]], dim=1)
    assert torch.equal(masks.suffix_mask(valid, model.action_mask(suffix)), of_suffix)
    ours = masks.prefix_self_mask(valid)[:, golden.rows]
    assert torch.equal(ours[rows], of_prefix[..., : valid.shape[1]][rows])  # rows of padding mean nothing
    positions = torch.cat([valid, expected["suffix_pad_masks"]], dim=1)
    assert torch.equal(masks.positions(positions), expected["position_ids"])


def test_rotary_angles_are_alike(golden, model):
    columns = torch.cat(
        [golden.rows, torch.arange(len(golden.outputs["prefix_pad_masks"][0]), golden.outputs["position_ids"].shape[1])]
    )
    turn = rotation(golden.outputs["position_ids"][:, columns], model.config.vlm.head_dim)
    for ours, name in ((turn.cos, "rope_cos"), (turn.sin, "rope_sin")):
        torch.testing.assert_close(ours[:, :, 0].repeat(1, 1, 2), golden.outputs[name], rtol=0, atol=2e-7)


def test_keys_and_values_of_the_prefix_are_alike(golden, prefix):
    valid = prefix.mask[:, golden.rows]
    assert len(prefix.layers) == golden.info["vlm"]["depth"]
    for layer, cached in enumerate(prefix.layers):
        for name, ours in (("k", cached.k), ("v", cached.v)):
            expected = golden.outputs[f"prefix_kv.{layer}.{name}"].transpose(1, 2)
            torch.testing.assert_close(ours[:, golden.rows][valid], expected[valid], **CLOSE)


def test_outputs_of_both_streams_are_alike_in_one_forward(golden, model, noisy):
    """The plain twin runs the VLM's last layer too, as openpi's training does."""
    tokens, mask = model.embed_prefix(golden.batch.observation)
    suffix, cond = model.embed_actions(golden.inputs["state"], noisy, golden.inputs["time"])
    out = model.mixture.joint(tokens, mask, {ACTION: (suffix, cond, model.action_mask(suffix))}, None)
    valid = mask[:, golden.rows]
    torch.testing.assert_close(out["vlm"][:, golden.rows][valid], golden.outputs["prefix_out"][valid], **CLOSE)
    torch.testing.assert_close(out[ACTION], golden.outputs["suffix_out"], **CLOSE)


def test_one_call_gives_loss_velocity_and_actions(golden):
    inputs, expected = golden.inputs, golden.outputs
    given = {"noise": inputs["noise"], "time": inputs["time"], "sample_noise": inputs["sample_noise"]}
    out = run_checkpoint(golden.directory, golden.batch, **given, **golden.settings)
    torch.testing.assert_close(out.velocity, expected["v_t"], **CLOSE)
    torch.testing.assert_close(out.loss, expected["loss"], **CLOSE)
    torch.testing.assert_close(out.loss, expected["loss_eval"], **CLOSE)
    torch.testing.assert_close(out.actions, expected["sampled_actions"], **ACTIONS)


def test_noise_of_another_batch_is_refused(golden):
    given = {name: golden.inputs[name][:1] for name in ("noise", "time", "sample_noise")}
    with pytest.raises(ValueError, match=r"^noise must be \[2, 8, 32\], got \[1, 8, 32\]"):
        run_checkpoint(golden.directory, golden.batch, **given, **golden.settings)


def test_a_camera_without_a_mask_is_named(golden, model):
    observation = golden.batch.observation
    some = replace(observation, image_masks={"base_0_rgb": observation.image_masks["base_0_rgb"]})
    with pytest.raises(ValueError, match=r"reads camera 'left_wrist_0_rgb'; .* masks of \['base_0_rgb'\]"):
        model.prefix(some)


def test_every_euler_step_is_alike(golden, model, prefix):
    state, expected, steps = golden.inputs["state"], golden.outputs, []

    def field(x, time):
        steps.append((x, time, model.action_velocity(state, x, time, prefix, None)))
        return steps[-1][2]

    with torch.no_grad():
        flow.integrate(field, golden.inputs["sample_noise"], len(expected["euler.t"]))
    for i, name in enumerate("xtv"):
        torch.testing.assert_close(torch.stack([s[i] for s in steps]), expected[f"euler.{name}"], **ACTIONS)


def test_other_numbers_of_steps_are_alike(golden, model, prefix):
    given = {"noise": golden.inputs["sample_noise"], "prefix": prefix}
    actions = model.sample_actions(golden.batch.observation, num_steps=3, **given)
    torch.testing.assert_close(actions, golden.outputs["sampled_actions_3steps"], **ACTIONS)


def test_gradients_and_the_first_optimiser_step_are_alike(golden):
    model = load_openpi(golden.directory, **golden.settings)
    loss = action_loss(model, golden)
    torch.testing.assert_close(loss, golden.outputs["loss"].mean((1, 2)), **CLOSE)
    loss.mean().backward()
    ours = {theirs: dict(model.named_parameters())[name] for name, theirs in tensor_names(model).items()}
    for name, expected in golden.gradients.items():
        actual = ours[name].grad
        torch.testing.assert_close(torch.zeros_like(expected) if actual is None else actual, expected, **GRADIENTS)

    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert float(norm) == pytest.approx(golden.info["grad_total_norm"], rel=1e-4)
    torch.optim.AdamW(model.parameters(), lr=2.5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10).step()
    queries = model.mixture.experts[ACTION].blocks[0].q_proj.weight
    for actual, name in ((model.action_out.weight, "action_out_proj.weight"), (queries, "expert_q0")):
        torch.testing.assert_close(actual.detach(), golden.outputs[f"adamw_step1.{name}"], rtol=0, atol=1e-6)


def test_parameters_without_gradient_are_the_same(golden):
    """The last VLM layer gives keys and values only. Its queries get no gradient here, zeros in openpi."""
    model = load_openpi(golden.directory, **golden.settings)
    action_loss(model, golden).mean().backward()
    names = tensor_names(model)
    idle = {names[n] for n, p in model.named_parameters() if p.grad is None}
    unused = "paligemma_with_expert.gemma_expert.lm_head.weight"
    assert idle == {*golden.info["params_without_grad"], *golden.info["params_with_zero_grad"]} - {unused}


def test_a_checkpoint_fills_every_tensor(golden, model):
    assert all(torch.isfinite(t).all() for t in unique_tensors(model).values())
    assert set(tensor_names(model)) == {name for name, _ in model.named_parameters()}


def test_the_example_of_the_docs_runs(monkeypatch, capsys):
    root = Path(__file__).parents[2]
    example = re.search(r"```python\n(.*?)```", (root / "docs" / "fidelity.md").read_text(), re.DOTALL)
    monkeypatch.chdir(root)
    exec(example[1], {})
    assert capsys.readouterr().out == " ".join(3 * ["torch.Size([2, 8, 32])"]) + "\n"
