"""float32, or bfloat16 with the sensitive parts in float32, as openpi has them.

In `bf16`, the matrices of vision tower and streams are bfloat16: nearly all of a full-size model. These stay float32:

- RMS norms and adaRMS with its modulation, patch and position embedding, as in openpi;
- what lies between tokens and the world: state, actions and flow time in, velocities out, all of the alignment suffix;
- of a TTT layer, all but its four theta matrices. W above all: alignment moves it in steps that bfloat16 rounds away;
- a keypoint tower, which points more finely than bfloat16 can say.

Rotary angles, the sums within norms and the sum of Euler steps are float32 whatever the parameters are. Observations,
noise, losses and actions are float32 outside of the model.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from selfalign.model.policy import VLA
from selfalign.model.vision import SigLIP

Precision = Literal["float32", "bf16"]


def set_precision(model: VLA, precision: Precision) -> VLA:
    """Bring the parameters to a precision, in place.

    From bf16 back to float32 the rounding stays. A model in bf16 has another fingerprint than in float32, so it takes
    contexts that were fitted in bf16.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is 'float32' or 'bf16', got {precision!r}")
    model.float()
    for module in bulk(model) if precision == "bf16" else ():
        module.bfloat16()
    return model


def precision_of(model: VLA) -> Precision:
    """The precision that the model was brought to."""
    return "bf16" if model.embed_tokens.weight.dtype == torch.bfloat16 else "float32"


def bulk(model: VLA) -> Iterator[nn.Module]:
    """The modules that bf16 brings to bfloat16."""
    yield model.embed_tokens
    if isinstance(model.vision, SigLIP):
        yield from (model.vision.blocks, model.vision.post_norm, model.image_proj)
    for stream in (model.mixture.vlm, *model.mixture.experts.values()):
        for block in stream.blocks:
            yield from (block.q_proj, block.k_proj, block.v_proj, block.o_proj, block.mlp)
    for ttt in model.ttt_layers:
        yield from (ttt.theta_q, ttt.theta_k, ttt.theta_v, ttt.theta_o)
