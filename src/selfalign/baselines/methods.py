"""The methods by name, and `fit`, which runs any of them.

adapted = fit("lora", policy, play, demonstrations)
rollout(adapted.policy, body, adapted.context)
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch

from selfalign.align.offline import AlignConfig
from selfalign.baselines.amortised import EncoderConfig, encoder
from selfalign.baselines.choices import chosen
from selfalign.baselines.contexts import FrozenConfig, frozen, selfalign
from selfalign.baselines.demonstrated import FinetuneConfig, LoraConfig, finetune, lora
from selfalign.baselines.method import Adapted, Choice, Given, LogUniform, Method
from selfalign.baselines.nearest import NearestConfig, nearest
from selfalign.baselines.pad import PadConfig, pad
from selfalign.baselines.prompt import PromptConfig, prompt
from selfalign.configs import changed
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.policy import Policy

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "frozen": Method(FrozenConfig, frozen, {}),
        "selfalign": Method(
            AlignConfig,
            selfalign,
            {
                "steps": Choice((30, 100, 300)),
                "learning_rate": LogUniform(1e-3, 3e-2),
                "decay_steps": Choice((10.0, 30.0, 100.0)),
                "batch_size": Choice((32, 64, 128)),
            },
        ),
        "pad": Method(
            PadConfig,
            pad,
            {"steps": Choice((30, 100, 300)), "learning_rate": LogUniform(1e-6, 1e-3), "head": Choice((True, False))},
        ),
        "prompt": Method(
            PromptConfig,
            prompt,
            {
                "tokens": Choice((1, 2, 4, 8, 16, 32)),
                "steps": Choice((30, 100, 300)),
                "learning_rate": LogUniform(1e-3, 3e-1),
            },
        ),
        "lora": Method(
            LoraConfig,
            lora,
            {
                "rank": Choice((2, 4, 8, 16, 32)),
                "steps": Choice((100, 300, 1000)),
                "learning_rate": LogUniform(1e-4, 1e-2),
            },
            uses_demonstrations=True,
        ),
        "finetune": Method(
            FinetuneConfig,
            finetune,
            {"steps": Choice((100, 300, 1000)), "learning_rate": LogUniform(1e-5, 3e-3)},
            uses_demonstrations=True,
        ),
        "nearest": Method(NearestConfig, nearest, {}),
        "encoder": Method(
            EncoderConfig,
            encoder,
            {
                "training.rank": Choice((16, 32, 64, 128)),
                "training.width": Choice((128, 256, 512)),
                "training.steps": Choice((1000, 2000)),
                "training.learning_rate": LogUniform(3e-4, 3e-3),
            },
        ),
    }
)
"""What the benchmark compares, beside the oracle, which is `selfalign` on bodies of the kind that were sources."""


def fit(
    name: str,
    policy: Policy,
    play: Play | None,
    demonstrations: Sequence[Episode] = (),
    *,
    seed: int = 0,
    config: Any = None,
    embodiment: Mapping[str, Any] = MappingProxyType({}),
    progress: bool = False,
) -> Adapted:
    """Brings a policy to a body. Neither the policy nor torch's random state is changed.

    Args:
        name: one of `METHODS`.
        policy: where the method starts.
        play: of the body; may be None for a method that uses demonstrations.
        demonstrations: successful episodes of the body with their instructions; methods that use none do not see them.
        seed: of everything that is drawn, where the config has no seed of its own.
        config: the method's config, or a mapping with what differs from its defaults, which are what was chosen on
            validation bodies (`baselines/choices.json`) where it was tuned; None: the defaults.
        embodiment: description of the body, where there is no play that has it: it says what of an action is a
            displacement.
        progress: show a progress bar.

    Raises:
        ValueError: no such method or setting; play or demonstrations that are missing, too short, or of another robot.
        ImportError: an extra is missing.
        FileNotFoundError: the encoder's file.
    """
    method = get(name)
    settings = configured(method, config, chosen(name))
    shown = tuple(demonstrations) if method.uses_demonstrations else ()
    if play is None and not method.uses_demonstrations:
        raise ValueError(f"{name} needs play of the body; `selfalign play` records some")
    if not shown and method.uses_demonstrations:
        raise ValueError(f"{name} learns from demonstrations of the body, and none was given: give at least one")
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outcome = method.adapt(Given(policy, play, shown, seed, progress, embodiment), settings)
    return Adapted(
        name,
        told(settings),
        outcome.policy,
        outcome.context,
        outcome.history,
        outcome.bytes_stored,
        time.perf_counter() - began,
    )


def told(config: Any) -> dict[str, Any]:
    """A method's config as JSON values."""
    return json.loads(json.dumps(asdict(config), default=str))


def get(name: str) -> Method:
    """The method of that name."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def configured(method: Method, config: Any, defaults: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The method's config from one of its own, a mapping of what differs from the defaults, or None.

    `defaults` are settings that come in the place of those of the config's class. A setting of a config within the
    config has a dotted name (`training.rank`), or is a mapping itself.
    """
    if config is None or isinstance(config, Mapping):
        return changed(changed(method.config(), defaults), config or {})
    if not isinstance(config, method.config):
        raise ValueError(f"expected {method.config.__name__} or a mapping, got {type(config).__name__}")
    return config
