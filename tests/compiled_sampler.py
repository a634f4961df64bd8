"""Compiles samplers and compares them with `sample_actions`. A process of its own: the shape checks that tests install
around every function are not for the compiler."""

import sys

import torch

from selfalign.model.policy import VLA
from selfalign.model.sampler import Sampler, SamplerConfig
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise, small_config

SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)


def main(time: str, device: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = randomise(VLA(small_config(time=time, vision=SIGLIP, cameras=("base", "wrist")))).to(device)
    torch.backends.cudnn.allow_tf32 = False
    sampler = Sampler(model, SamplerConfig(num_steps=3))
    torch._dynamo.config.error_on_recompile = True
    for seed, prompt in enumerate((5, 3, 4)):  # one program: prompts of up to 16 tokens are one shape
        observation = make_batch(model, prompt=prompt, seed=seed).observation.to(device)
        context, noise = model.prior().perturbed(0.5), torch.randn(4, 6, 4, device=device)
        expected = model.sample_actions(observation, context, noise=noise, num_steps=3)
        actions = sampler(observation, context, noise=noise)
        print(f"prompt of {prompt}: {float((actions - expected).abs().max()):.1e} apart")
        torch.testing.assert_close(actions, expected, rtol=1e-4, atol=1e-5)
    assert len(sampler._graphs) == (device == "cuda")
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2, counters["stats"]  # the prefix, the velocity


if __name__ == "__main__":
    main(*sys.argv[1:])
