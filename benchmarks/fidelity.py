"""The largest difference from openpi's PyTorch model, quantity by quantity.

    python benchmarks/fidelity.py

Reads the small checkpoints and numbers in tests/data/goldens; float32, one thread, a few seconds.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from goldens import OPENPI, OpenPIGolden
from selfalign.model import flow
from selfalign.model.layers import rotation, time_embedding
from selfalign.model.losses import ACTION, FlowNoise
from selfalign.model.openpi import load_openpi, run_checkpoint
from selfalign.model.openpi_names import tensor_names


def forward(golden: OpenPIGolden) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(quantity, ours, openpi's)"""
    model, inputs, expected = load_openpi(golden.directory, **golden.settings), golden.inputs, golden.outputs
    observation, time, rows = golden.batch.observation, inputs["time"], golden.rows
    patches = model.vision(observation.images[golden.info["cameras"][0]])[:, ::16]
    yield "SigLIP features", patches, expected["siglip_patch_features.cam0"]
    tokens, mask = model.embed_prefix(observation)
    valid = mask[:, rows]
    yield "prefix embeddings", tokens[:, rows], expected["prefix_embs"]
    noisy = flow.interpolate(inputs["actions"], inputs["noise"], time)
    suffix, cond = model.embed_actions(inputs["state"], noisy, time)
    yield "time embedding", time_embedding(time, model.config.action.width), expected["time_embedding"]
    yield "suffix embeddings", suffix, expected["suffix_embs"]
    if cond is not None:
        yield "adaRMS condition", cond, expected["adarms_cond"]
    columns = torch.cat([rows, torch.arange(mask.shape[1], mask.shape[1] + suffix.shape[1])])
    turn = rotation(expected["position_ids"][:, columns], model.config.vlm.head_dim)
    yield "RoPE (cos, sin)", turn.cos[:, :, 0].repeat(1, 1, 2), expected["rope_cos"]
    yield "RoPE (cos, sin)", turn.sin[:, :, 0].repeat(1, 1, 2), expected["rope_sin"]
    prefix = model.mixture.prefix(tokens, mask)
    for i, cached in enumerate(prefix.layers):
        for name, ours in (("k", cached.k), ("v", cached.v)):
            kept = expected[f"prefix_kv.{i}.{name}"].transpose(1, 2)[valid]
            yield f"prefix {'keys' if name == 'k' else 'values'}", ours[:, rows][valid], kept
    out = model.mixture.joint(tokens, mask, {ACTION: (suffix, cond, model.action_mask(suffix))}, None)
    yield "VLM output", out["vlm"][:, rows][valid], expected["prefix_out"][valid]
    yield "expert output", out[ACTION], expected["suffix_out"]
    for x, t, v in zip(expected["euler.x"], expected["euler.t"], expected["euler.v"], strict=True):
        yield "v at every Euler step", model.action_velocity(inputs["state"], x, t, prefix, None), v


def sampled(golden: OpenPIGolden) -> Iterator[tuple[str, Tensor, Tensor]]:
    inputs, expected = golden.inputs, golden.outputs
    given = {name: inputs[name] for name in ("noise", "time", "sample_noise")}
    ten, three = (
        run_checkpoint(golden.directory, golden.batch, num_steps=n, **given, **golden.settings) for n in (10, 3)
    )
    yield "v_t", ten.velocity, expected["v_t"]
    yield "loss, unreduced", ten.loss, expected["loss"]
    yield "actions, 10 steps", ten.actions, expected["sampled_actions"]
    yield "actions, 3 steps", three.actions, expected["sampled_actions_3steps"]


def trained(golden: OpenPIGolden) -> Iterator[tuple[str, Tensor, Tensor]]:
    model = load_openpi(golden.directory, **golden.settings)
    noise = FlowNoise(golden.inputs["noise"], torch.zeros_like(golden.inputs["state"]), None)
    model.losses(golden.batch, noise=noise, time=golden.inputs["time"], parts=(ACTION,)).total.backward()
    ours = {theirs: model.get_parameter(name) for name, theirs in tensor_names(model).items()}
    for name, expected in golden.gradients.items():
        gradient = ours[name].grad
        yield "gradients", torch.zeros_like(expected) if gradient is None else gradient, expected
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=2.5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10).step()
    yield "after one AdamW step", model.action_out.weight, golden.outputs["adamw_step1.action_out_proj.weight"]
    queries = model.mixture.experts[ACTION].blocks[0].q_proj.weight
    yield "after one AdamW step", queries, golden.outputs["adamw_step1.expert_q0"]


def distance(quantity: str, ours: Tensor, expected: Tensor) -> float:
    """The largest absolute difference.

    Raises:
        ValueError: one that is not finite, which the maximum with 0 would hide.
    """
    largest = float((ours - expected).abs().max())
    if not math.isfinite(largest):
        raise ValueError(f"{quantity}: the difference is {largest}")
    return largest


def main() -> None:
    torch.set_num_threads(1)
    worst: dict[str, dict[str, float]] = {}
    for name in OPENPI:
        golden = OpenPIGolden.read(name)
        for part in (forward, sampled, trained):
            for quantity, ours, expected in part(golden):
                column = worst.setdefault(quantity, dict.fromkeys(OPENPI, 0.0))
                column[name] = max(column[name], distance(quantity, ours.detach(), expected))
    print("| largest absolute difference | pi0 | pi0.5 |\n|---|---|---|")
    for quantity, column in worst.items():
        print(f"| {quantity} | " + " | ".join(f"{column[name]:.1e}" for name in OPENPI) + " |")


if __name__ == "__main__":
    main()
