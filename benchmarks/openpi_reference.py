"""openpi's own PyTorch model, built from a checkout of openpi, with the sizes and weights of one of ours.

Nothing of openpi is in this repository. Its model needs transformers 4.53.2 with openpi's files copied over it, so it
has an environment of its own (benchmarks/README.md says how to make it). Its JAX half is not needed: two of its modules
that import JAX, of which the PyTorch model takes a table of sizes and a resize, are replaced by what is used of them.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from selfalign.model.config import VLAConfig
from selfalign.model.openpi import openpi_tensors
from selfalign.model.openpi_names import EMBEDDING, UNUSED
from selfalign.model.policy import VLA
from selfalign.types import Observation, Transition


def checkout_at(given: Path | None) -> Path:
    """Where openpi is: `given`, or what the environment variable OPENPI says."""
    found = given or os.environ.get("OPENPI")
    if not found:
        raise SystemExit("where is openpi? Give --openpi or set OPENPI to a checkout of it")
    return Path(found)


class Reference:
    """openpi's model in the sizes of one of ours, in float32 and without augmentation.

    Args:
        checkout: of openpi.
        config: the sizes.
        device: "meta" builds it without memory.
    """

    def __init__(self, checkout: Path, config: VLAConfig, device: str = "cpu"):
        with torch.device(device):
            self.model = _build(checkout, config)

    @classmethod
    def of(cls, checkout: Path, ours: VLA) -> "Reference":
        """With our model's weights."""
        reference = cls(checkout, ours.config)
        loaded = reference.model.load_state_dict(openpi_tensors(ours), strict=False)
        if set(loaded.missing_keys) - {EMBEDDING, UNUSED} or loaded.unexpected_keys:
            raise ValueError(f"openpi's model has other tensors: {loaded}")
        return reference

    def load(self, directory: Path) -> None:
        """Load a checkpoint with the call that openpi's `load_pytorch` makes: strictly."""
        load_model(self.model, directory / "model.safetensors")

    def save(self, directory: Path) -> None:
        """Save a checkpoint's weights with the call that openpi's training makes."""
        save_model(self.model, directory / "model.safetensors")

    def sample_actions(self, observation: Observation, noise: Tensor, num_steps: int) -> Tensor:
        return self.model.eval().sample_actions("cpu", _observation(observation), noise=noise, num_steps=num_steps)

    def loss(self, batch: Transition, noise: Tensor, time: Tensor) -> Tensor:
        """The mean loss on its training path, which recomputes every layer in the backward pass."""
        return self.model.train()(_observation(batch.observation), batch.actions.values, noise, time).mean()


def read_stats(directory: Path) -> dict[str, dict[str, np.ndarray]]:
    """Statistics as openpi's own reader gives them, after a `Reference` was built."""
    from openpi.shared import normalize

    return {name: vars(stats) for name, stats in normalize.load(directory).items()}


def write_stats(directory: Path, stats: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Statistics written by openpi's own writer, after a `Reference` was built."""
    from openpi.shared import normalize

    normalize.save(directory, {name: normalize.NormStats(**values) for name, values in stats.items()})


def _observation(observation: Observation) -> SimpleNamespace:
    return SimpleNamespace(
        images=observation.images,
        image_masks=observation.image_masks,
        state=observation.state,
        tokenized_prompt=observation.tokens,
        tokenized_prompt_mask=observation.token_mask,
        token_ar_mask=None,
        token_loss_mask=None,
    )


def _build(checkout: Path, config: VLAConfig) -> nn.Module:
    _import_from(checkout)
    try:
        import transformers
        from openpi.models_pytorch import gemma_pytorch, pi0_pytorch, preprocessing_pytorch
    except ImportError as error:
        raise SystemExit(
            f"openpi's PyTorch model in {checkout} cannot be imported ({error}); see benchmarks/README.md"
        ) from error
    for name in ("PaliGemmaForConditionalGeneration", "GemmaForCausalLM"):
        setattr(gemma_pytorch, name, resized(getattr(transformers, name), config))
    prepare = preprocessing_pytorch.preprocess_observation_pytorch
    plain = SimpleNamespace(preprocess_observation_pytorch=lambda observation, train: prepare(observation, train=False))
    pi0_pytorch._preprocessing = plain
    settings = SimpleNamespace(
        pi05=config.time == "adarms",
        paligemma_variant=config.vlm,
        action_expert_variant=config.action,
        dtype="float32",
        action_dim=config.action_dim,
        action_horizon=config.action_horizon,
        pytorch_compile_mode=None,
    )
    model = pi0_pytorch.PI0Pytorch(settings)
    torch.set_float32_matmul_precision("highest")  # its constructor sets "high" for the whole process
    return model


def _import_from(checkout: Path) -> None:
    """Make `openpi.models_pytorch` of a checkout importable without JAX."""
    source = checkout / "src"
    if not (source / "openpi" / "models_pytorch" / "pi0_pytorch.py").is_file():
        raise SystemExit(f"{checkout} is not a checkout of openpi: it has no src/openpi/models_pytorch")
    if "openpi" in sys.modules:
        return
    sys.path.insert(0, str(source))
    for package in ("openpi.models", "openpi.shared"):
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = []
    sys.modules["openpi.shared"].__path__ = [str(source / "openpi" / "shared")]
    sizes, images = ModuleType("openpi.models.gemma"), ModuleType("openpi.shared.image_tools")
    sizes.get_config = lambda variant: variant  # a StreamConfig has the fields that are read of a variant
    sys.modules |= {"openpi.models.gemma": sizes, "openpi.shared.image_tools": images}
    sys.modules["openpi.models"].gemma, sys.modules["openpi.shared"].image_tools = sizes, images


def resized(real: Callable[[Any], nn.Module], ours: VLAConfig) -> Callable[[Any], nn.Module]:
    """Builds with our vision tower's sizes and vocabulary, which openpi has written in."""

    def make(config: Any) -> nn.Module:
        config.vocab_size = ours.vocab_size
        if hasattr(config, "vision_config"):
            config._vocab_size = config.text_config.vocab_size = ours.vocab_size
            tower = config.vision_config
            tower.hidden_size, tower.intermediate_size = ours.vision.width, ours.vision.mlp_dim
            tower.num_hidden_layers, tower.num_attention_heads = ours.vision.depth, ours.vision.num_heads
            tower.patch_size, tower.image_size = ours.vision.patch_size, ours.vision.image_size
            tower.projection_dim = ours.vlm.width
        return real(config)

    return make
