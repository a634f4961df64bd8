"""Costs on the meta device: against real runs, and against sums written out."""

from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from selfalign import presets
from selfalign.model.cost import DEVICES, Cost, Device, Workload, align_step, meta_model, sampling_phases
from selfalign.model.losses import ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise, small_config

SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)
CAMERAS = ("base", "left", "right")
WORK = Workload(batch=4, prompt=5, num_steps=3)


def config(time: str = "adarms", **changes):
    return small_config(time=time, vision=SIGLIP, cameras=CAMERAS, **changes)


def flops(run) -> int:
    """torch's own count of a real run; its fused attention for CPUs is not in torch's table."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("time", ["adarms", "concat"])
def test_flops_are_those_of_a_real_run(time):
    model = randomise(VLA(config(time))).requires_grad_(False)
    batch = make_batch(model)
    meta = meta_model(model.config)
    phases = sampling_phases(meta, WORK)
    sampled = flops(lambda: model.sample_actions(batch.observation, num_steps=3))
    assert sum(p.cost.flops * p.times for p in phases) == sampled

    prefix, context = model.prefix(batch.observation), model.prior().leaf()
    step = lambda: model.losses(batch, context, prefix=prefix, parts=(ALIGNMENT,)).total.backward()  # noqa: E731
    assert align_step(meta, WORK).cost.flops == flops(step)


def test_masked_cameras_cost_nothing():
    model = randomise(VLA(config()))
    observation = make_batch(model).observation
    observation.image_masks["right"][:] = False
    prefix = sampling_phases(meta_model(model.config), replace(WORK, cameras=2))[0]
    assert prefix.cost.flops == flops(lambda: model.prefix(observation))


def test_the_prefix_is_the_sum_of_its_matrices_and_attention():
    model = meta_model(config(), "float32")
    tokens, width = 3 * 4, SIGLIP.width
    block = 4 * width**2 + 2 * width * SIGLIP.mlp_dim
    tower = 2 * tokens * (2 * block + 3 * 8 * 8 * width + width * 24) + 2 * 3 * 4 * 4**2 * width
    p, vlm = tokens + 5, model.config.vlm
    q, kv = vlm.num_heads * vlm.head_dim, 2 * vlm.num_kv_heads * vlm.head_dim
    layer = 2 * p * (vlm.width * (2 * q + kv) + 3 * vlm.width * vlm.mlp_dim) + 4 * p**2 * q
    last = 2 * p * vlm.width * kv
    prefix = sampling_phases(model, Workload(prompt=5))[0].cost
    assert prefix.flops == tower + 2 * layer + last

    read = [*model.vision.parameters(), *model.image_proj.parameters()]
    read += [t for block in model.mixture.vlm.blocks[:2] for t in block.parameters()]
    final = model.mixture.vlm.blocks[2]
    read += [*final.attention_norm.parameters(), *final.k_proj.parameters(), *final.v_proj.parameters()]
    words, written = 5 * vlm.width, 3 * p * kv
    assert prefix.bytes == 4 * (sum(t.numel() for t in read) + words + written)


def test_a_step_reads_the_expert_and_the_cache():
    model = meta_model(config("concat"), "float32")
    step = sampling_phases(model, Workload(prompt=5))[-1].cost
    ttt = [t for layer in model.ttt_layers for t in (layer.W1, layer.b1)]
    read = {*model.mixture.experts["action"].parameters(), *model.time["action"].parameters(), *ttt}
    read |= {p for m in (model.state_in, model.action_in, model.action_out) for p in m.parameters()}
    cache = 3 * 2 * (3 * 4 + 5) * 2 * 8
    assert step.bytes == 4 * (sum(p.numel() for p in read) + cache)


def test_bf16_moves_about_half():
    half, whole = (sampling_phases(meta_model(presets.pi0(), p))[0].cost for p in ("bf16", "float32"))
    assert half.flops == whole.flops
    assert 0.5 < half.bytes / whole.bytes < 0.51


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    device = Device(tflops=100, gbps=1000)
    assert Cost(10**12, 10**9).bound_ms(device) == pytest.approx(10.0)
    assert Cost(10**11, 10**9).bound_ms(device) == pytest.approx(1.0)
    assert all(d.tflops > 0 and d.gbps > 0 for d in DEVICES.values())


def test_a_plain_policy_has_no_align_step():
    assert align_step(meta_model(config(alignment=None)), WORK) is None


def test_the_inner_loop_is_left_out():
    ttt = replace(config().ttt, meta_learning=True)
    assert sampling_phases(meta_model(config(ttt=ttt)), WORK)


def test_shallow_experts_read_part_of_the_cache():
    shallow = StreamConfig(width=16, mlp_dim=32, depth=1, num_heads=4, num_kv_heads=2, head_dim=8, reads=(2,))
    deep = sampling_phases(meta_model(config()), WORK)[-1].cost
    assert sampling_phases(meta_model(config(action=shallow)), WORK)[-1].cost.bytes < deep.bytes
