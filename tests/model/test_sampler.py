"""The sampler for serving gives the actions of `sample_actions`: eager, compiled, and as a CUDA graph."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.model.sampler import Sampler, SamplerConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise, small_config

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)
TESTS = Path(__file__).parents[1]


@pytest.fixture(params=["adarms", "concat"])
def model(request) -> VLA:
    return randomise(VLA(small_config(time=request.param, vision=SIGLIP, cameras=("base", "wrist"))))


@pytest.fixture
def sampler(model) -> Sampler:
    return Sampler(model, SamplerConfig(num_steps=3, compile=False, prompt_multiple=4))


def test_actions_are_the_same(model, sampler):
    observation, noise = make_batch(model).observation, torch.randn(4, 6, 4)
    expected = model.sample_actions(observation, noise=noise, num_steps=3)
    torch.testing.assert_close(sampler(observation, noise=noise), expected, **CLOSE)
    observation.image_masks["wrist"][:] = False
    expected = model.sample_actions(observation, noise=noise, num_steps=3)
    torch.testing.assert_close(sampler(observation, noise=noise), expected, **CLOSE)


def test_contexts_one_or_one_per_sample(model, sampler):
    observation, noise = make_batch(model).observation, torch.randn(4, 6, 4)
    bodies = EmbodimentContext.stack([model.prior().perturbed(0.5) for _ in range(4)])
    for context in (bodies.index(0), bodies):
        expected = model.sample_actions(observation, context, noise=noise, num_steps=3)
        torch.testing.assert_close(sampler(observation, context, noise=noise), expected, **CLOSE)


def test_prompts_are_padded_to_few_lengths(model, sampler):
    lengths = []
    prefix = sampler._prefix
    sampler._prefix = lambda *args: lengths.append(prefix(*args).mask.shape[1]) or prefix(*args)
    for prompt in (2, 3, 4, 5, 8):
        sampler(make_batch(model, prompt=prompt).observation)
    patches = 2 * 4
    assert [length - patches for length in lengths] == [4, 4, 4, 8, 8]


def test_features_stand_for_pixels(model, sampler):
    observation, noise = make_batch(model).observation, torch.randn(4, 6, 4)
    expected = sampler(observation, noise=noise)
    features = model.image_features(observation.images)
    given = type(observation)(**{**vars(observation), "images": {}, "image_features": features})
    torch.testing.assert_close(sampler(given, noise=noise), expected, **CLOSE)


def test_the_inner_loop_is_refused_in_a_graph():
    model = VLA(small_config(ttt=TTTConfig(num_heads=2, head_dim=8, meta_learning=True)))
    with pytest.raises(ValueError, match="graph=False"):
        Sampler(model)
    Sampler(model, SamplerConfig(graph=False))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("time", ["adarms", "concat"])
def test_compiled_actions_are_the_same_and_prompts_share_a_program(time, device):
    """On a CUDA device the compiled code is in a graph, too."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "compiled_sampler.py"), time, device]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_graph_replays_the_same_actions_for_new_inputs(model, precision):
    from selfalign.model.precision import set_precision

    set_precision(model, precision).cuda()
    sampler = Sampler(model, SamplerConfig(num_steps=3, compile=False))
    close = CLOSE if precision == "float32" else {"rtol": 5e-2, "atol": 5e-2}
    for seed in range(3):
        observation, context = make_batch(model, seed=seed).observation.to("cuda"), model.prior().perturbed(0.5)
        noise = torch.randn(4, 6, 4, device="cuda")
        expected = model.sample_actions(observation, context, noise=noise, num_steps=3)
        torch.testing.assert_close(sampler(observation, context, noise=noise), expected, **close)
    assert len(sampler._graphs) == 1
