"""LeRobot's own pi0 and pi0.5 policies with their processors, in the sizes of one of our models.

Nothing of LeRobot is in this repository; benchmarks/README.md says how to make the environment. Three things are
replaced: the table of sizes, PaliGemma's tokenizer (by a small one, since LeRobot's is downloaded), and packages that
only LeRobot's robots and data sets use, where they are not installed.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from openpi_reference import resized
from torch import Tensor, nn

from selfalign.model.config import VLAConfig
from selfalign.types import Observation

UNUSED = ("cv2", "deepdiff", "imageio", "pynput", "rerun", "serial", "torchvision", "wandb")
"""Packages that LeRobot imports on the way to its policies and that these do not call."""
VARIANTS = {"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m", "device": "cpu"}
"""LeRobot builds two sizes by their names; these stand for ours while a `Reference` is built."""


class Words:
    """A sentencepiece model as LeRobot calls a tokenizer: one pass over the text, padded to a fixed length."""

    def __init__(self, model: bytes):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> dict[str, Tensor]:
        rows = [self._pieces.encode(text, add_bos=True)[:max_length] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (torch.arange(max_length) < lengths[:, None]).long()}


class Reference:
    """LeRobot's policy and its two processors, with the calls that LeRobot's own commands make.

    Args:
        config: the sizes of our model.
        words: of the tokenizer.
    """

    def __init__(self, config: VLAConfig, words: Words):
        _import()
        self.ours, self.words = config, words
        self.kind = "pi0" if config.time == "concat" else "pi05"
        self.policy: Any = None
        self.before: Any = None
        self.after: Any = None

    @property
    def model(self) -> nn.Module:
        """LeRobot's model without its policy: its tensors have openpi's names."""
        return self.policy.model

    def load(self, directory: Path) -> str:
        """Open a policy directory; returns what LeRobot says while it loads, which is all that a failure leaves.

        In its `config.json`, the names of the sizes are changed to ones that LeRobot accepts.
        """
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.processor import PolicyProcessorPipeline, converters

        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **VARIANTS}))
        told = io.StringIO()
        with contextlib.redirect_stdout(told), self._replaced():
            config = PreTrainedConfig.from_pretrained(directory)
            self.policy = self._policy_class().from_pretrained(directory, config=config).eval()
            self.before = PolicyProcessorPipeline.from_pretrained(directory, "policy_preprocessor.json")
            self.after = PolicyProcessorPipeline.from_pretrained(
                directory,
                "policy_postprocessor.json",
                to_transition=converters.policy_action_to_transition,
                to_output=converters.transition_to_policy_action,
            )
        return told.getvalue()

    def make(self, stats: Mapping[str, Mapping[str, np.ndarray]], features: Mapping[str, tuple[int, ...]]) -> None:
        """A new policy of LeRobot's, with LeRobot's own initial values.

        Args:
            stats: of `observation.state` and `action`.
            features: shapes by name; `action` is the output.
        """
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.pi0 import configuration_pi0, processor_pi0
        from lerobot.policies.pi05 import configuration_pi05, processor_pi05

        def feature(name: str) -> Any:
            kind = FeatureType.STATE if name.endswith("state") else FeatureType.VISUAL
            return PolicyFeature(FeatureType.ACTION if name == "action" else kind, features[name])

        config_class, make_processors = {
            "pi0": (configuration_pi0.PI0Config, processor_pi0.make_pi0_pre_post_processors),
            "pi05": (configuration_pi05.PI05Config, processor_pi05.make_pi05_pre_post_processors),
        }[self.kind]
        config = config_class(
            input_features={name: feature(name) for name in features if name != "action"},
            output_features={"action": feature("action")},
            chunk_size=self.ours.action_horizon,
            n_action_steps=self.ours.action_horizon,
            tokenizer_max_length=self.ours.max_token_len,
            device="cpu",
        )
        tensors = {key: {name: torch.from_numpy(v) for name, v in held.items()} for key, held in stats.items()}
        with self._replaced():
            self.policy = self._policy_class()(config).eval()
            self.before, self.after = make_processors(config, tensors)

    def save(self, directory: Path) -> None:
        """The three calls of LeRobot's training."""
        self.policy.save_pretrained(directory)
        self.before.save_pretrained(directory)
        self.after.save_pretrained(directory)

    def sample_actions(self, observation: Observation, noise: Tensor, num_steps: int) -> Tensor:
        """Of the bare model, on what it reads."""
        seen = observation
        read = [list(seen.images.values()), list(seen.image_masks.values()), seen.tokens, seen.token_mask]
        if self.kind == "pi0":
            read.append(seen.state)
        with torch.no_grad():
            return self.model.sample_actions(*read, noise=noise, num_steps=num_steps)

    def act(self, raw: Mapping[str, Any], noise: Tensor, num_steps: int) -> np.ndarray:
        """Actions `[H, A]` in robot units of a raw observation in LeRobot's names, pictures uint8 `[H, W, 3]`."""
        seen = {key: value for key, value in raw.items() if isinstance(value, str)}
        for key, value in raw.items():
            if isinstance(value, np.ndarray):
                pixels = value.dtype == np.uint8
                seen[key] = torch.from_numpy(value).permute(2, 0, 1) / 255 if pixels else torch.from_numpy(value)
        batch = self.before(seen)
        return self.after(self.policy.predict_action_chunk(batch, noise=noise[None], num_steps=num_steps))[0].numpy()

    def _policy_class(self) -> Any:
        from lerobot.policies.pi0.modeling_pi0 import PI0Policy
        from lerobot.policies.pi05.modeling_pi05 import PI05Policy

        return PI0Policy if self.kind == "pi0" else PI05Policy

    @contextlib.contextmanager
    def _replaced(self):
        """Our sizes and words in LeRobot's modules, as long as something is built."""
        import transformers
        from lerobot.policies.pi0 import modeling_pi0
        from lerobot.policies.pi05 import modeling_pi05
        from lerobot.processor import tokenizer_processor

        module = modeling_pi0 if self.kind == "pi0" else modeling_pi05
        streams = {"gemma_2b": self.ours.vlm, "gemma_300m": self.ours.action}
        places = [(tokenizer_processor, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda _: self.words))]
        places += [(module, "get_gemma_config", streams.__getitem__)]
        for name in ("PaliGemmaForConditionalGeneration", "GemmaForCausalLM"):
            places.append((module, name, resized(getattr(transformers, name), self.ours)))
        kept = [(place, name, getattr(place, name)) for place, name, _ in places]
        for place, name, value in places:
            setattr(place, name, value)
        try:
            yield
        finally:
            for place, name, value in kept:
                setattr(place, name, value)


def full_size(kind: str) -> nn.Module:
    """LeRobot's bare model at its own sizes, without memory."""
    _import()
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch

    with torch.device("meta"):
        return PI0Pytorch(PI0Config(device="cpu")) if kind == "pi0" else PI05Pytorch(PI05Config(device="cpu"))


class _Absent(MetaPathFinder, Loader):
    """Stands for the packages of `UNUSED` that are not installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in UNUSED else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock()

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""


def _import() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not any(isinstance(finder, _Absent) for finder in sys.meta_path):
        sys.meta_path.append(_Absent())
    try:
        import lerobot.policies.pi0.modeling_pi0
        import lerobot.policies.pi0.processor_pi0
        import lerobot.policies.pi05.modeling_pi05
        import lerobot.policies.pi05.processor_pi05  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"LeRobot's policies cannot be imported ({error}); see benchmarks/README.md") from error
