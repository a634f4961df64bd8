"""pi0's and pi0.5's velocity written out, from a checkpoint's tensors: an independent reference for any sizes.

One sample at a time, in float64. Padding is not masked but left out, heads are a loop, and prefix and suffix go through
the layers together, so nothing of the library's structure is repeated here.
"""

import math

import torch
from torch import Tensor

VLM, EXPERT = "paligemma_with_expert.paligemma.model.language_model.", "paligemma_with_expert.gemma_expert.model."
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear"
WORDS = "paligemma_with_expert.paligemma.lm_head.weight"


def velocity(tensors: dict[str, Tensor], sample: dict, head_dim: int, vision_heads: int) -> Tensor:
    """v_t [H, A] of one sample: `images` (the valid ones, [3, S, S]), `words`, `state`, `noisy`, `time`."""
    w = {name: t.double() for name, t in tensors.items()}
    prefix = [linear(w, PROJECTOR, siglip(w, image.double(), vision_heads)) for image in sample["images"]]
    prefix.append(w[WORDS][sample["words"]] * math.sqrt(w[WORDS].shape[1]))
    x, cond = torch.cat(prefix), None
    y = linear(w, "action_in_proj", sample["noisy"].double())
    waves = sinusoids(float(sample["time"]), y.shape[1])
    if "time_mlp_in.weight" in w:
        cond = silu(linear(w, "time_mlp_out", silu(linear(w, "time_mlp_in", waves))))
    else:
        y = torch.stack([silu_mlp(w, torch.cat([token, waves])) for token in y])
        y = torch.cat([linear(w, "state_proj", sample["state"].double())[None], y])

    for layer in range(sum(name.startswith(VLM) and name.endswith("q_proj.weight") for name in w)):
        x, y = gemma_layer(w, layer, x, y, cond, head_dim)
    out, _ = norm(w, EXPERT + "norm", y, cond)
    return linear(w, "action_out_proj", out[-len(sample["noisy"]) :])


def gemma_layer(w, layer: int, x: Tensor, y: Tensor, cond: Tensor | None, head_dim: int) -> tuple[Tensor, Tensor]:
    """One layer of both streams: x reads x; y reads x and y, but a state token in front of y reads x and itself."""
    names = [f"{stream}layers.{layer}." for stream in (VLM, EXPERT)]
    conds, tokens = (None, cond), (x, y)
    normed = [norm(w, n + "input_layernorm", t, c) for n, t, c in zip(names, tokens, conds)]
    q, k, v = (
        torch.cat([linear(w, f"{n}self_attn.{p}_proj", t) for n, (t, _) in zip(names, normed)]) for p in ("q", "k", "v")
    )
    total, heads, groups = len(q), q.shape[1] // head_dim, k.shape[1] // head_dim
    q = turned(q.reshape(total, heads, head_dim))
    k, v = turned(k.reshape(total, groups, head_dim)), v.reshape(total, groups, head_dim)
    attended = torch.zeros(total, heads, head_dim, dtype=torch.float64)
    for row in range(total):
        state_row = cond is None and row == len(x)
        seen = len(x) if row < len(x) else len(x) + 1 if state_row else total
        for head in range(heads):
            group = head * groups // heads
            weights = (k[:seen, group] @ q[row, head] / math.sqrt(head_dim)).softmax(0)
            attended[row, head] = weights @ v[:seen, group]
    results = []
    parts = attended.flatten(1).split([len(x), len(y)])
    for n, t, (_, gate), part, c in zip(names, tokens, normed, parts, conds):
        t = t + linear(w, n + "self_attn.o_proj", part) * gate
        inner, gate = norm(w, n + "post_attention_layernorm", t, c)
        hidden = gelu(linear(w, n + "mlp.gate_proj", inner)) * linear(w, n + "mlp.up_proj", inner)
        results.append(t + linear(w, n + "mlp.down_proj", hidden) * gate)
    return results[0], results[1]


def norm(w, name: str, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """RMS norm and the gate of what follows, 1 without a condition."""
    unit = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)
    if cond is None:
        return unit * (1 + w[name + ".weight"]), torch.ones(1, dtype=torch.float64)
    scale, shift, gate = linear(w, name + ".dense", cond).reshape(3, -1)
    return unit * (1 + scale) + shift, gate


def siglip(w, image: Tensor, heads: int) -> Tensor:
    """Tokens [N, D] of one image [3, S, S]."""
    kernel = w[VISION + "embeddings.patch_embedding.weight"]
    size = kernel.shape[-1]
    side = image.shape[-1] // size
    patches = [image[:, i * size : (i + 1) * size, j * size : (j + 1) * size] for i in range(side) for j in range(side)]
    x = torch.stack([(kernel * patch).sum((1, 2, 3)) for patch in patches])
    x = x + w[VISION + "embeddings.patch_embedding.bias"] + w[VISION + "embeddings.position_embedding.weight"]
    for layer in range(sum(name.startswith(VISION) and name.endswith("q_proj.weight") for name in w)):
        n = f"{VISION}encoder.layers.{layer}."
        normed = layer_norm(w, n + "layer_norm1", x)
        q, k, v = (linear(w, f"{n}self_attn.{p}_proj", normed).chunk(heads, dim=1) for p in ("q", "k", "v"))
        read = [(a @ b.T / math.sqrt(a.shape[1])).softmax(1) @ c for a, b, c in zip(q, k, v)]
        x = x + linear(w, n + "self_attn.out_proj", torch.cat(read, dim=1))
        x = x + linear(w, n + "mlp.fc2", gelu(linear(w, n + "mlp.fc1", layer_norm(w, n + "layer_norm2", x))))
    return layer_norm(w, VISION + "post_layernorm", x)


def layer_norm(w, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
    return unit * w[name + ".weight"] + w[name + ".bias"]


def turned(x: Tensor) -> Tensor:
    """Rotary positions of [T, heads, K], token i at position i, as products of complex numbers."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x)).double()[:, None] * 10_000.0 ** -(torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], dim=-1)


def sinusoids(time: float, width: int) -> Tensor:
    """Sines, then cosines, with periods from 0.004 to 4."""
    half = width // 2
    angles = [2 * math.pi * time / (4e-3 * 1000 ** (i / (half - 1))) for i in range(half)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def silu_mlp(w, x: Tensor) -> Tensor:
    return linear(w, "action_time_mlp_out", silu(linear(w, "action_time_mlp_in", x)))


def linear(w, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
