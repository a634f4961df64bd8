"""What a model is built of, and the hash that tells one model from another."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from selfalign.model.streams import StreamConfig
from selfalign.model.tensorfile import StoredTensor
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig, VisionConfig


@dataclass(frozen=True)
class VLAConfig:
    """Everything that is needed to build the model."""

    vlm: StreamConfig
    action: StreamConfig
    alignment: StreamConfig | None
    """None: a plain policy without alignment expert."""
    ttt: TTTConfig = field(default_factory=TTTConfig)
    vision: VisionConfig = field(default_factory=KeypointTowerConfig)
    vocab_size: int = 258
    max_token_len: int = 48
    prompt_merges: tuple[str, ...] = ()
    """Words that the byte tokenizer reads as one token."""
    cameras: tuple[str, ...] = ("scene",)
    state_dim: int = 8
    action_dim: int = 8
    action_horizon: int = 8
    grounding: bool = False
    """Heads that point at what the prompt names, for a VLM that is trained from nothing."""
    time: str = "adarms"
    """How flow time comes in: "adarms" (pi0.5) or "concat" (pi0)."""
    state_token: bool = True
    """The state is the action suffix's first token (pi0); False: the prompt holds it, if anything does (pi0.5)."""
    discrete_state_input: bool = True
    """Without a state token, prompts tell the state in words; False: nothing tells it (openpi's `pi05_libero`)."""
    prompt_tokens: int = 0
    """Tokens of a latent prompt, which the experts read beside the prefix; 0: there is none."""
    next_offset: int | None = None
    """Steps after o_t at which the next observation is seen, at most the horizon; None: the horizon."""
    next_pixels: int = 0
    """Next observations are told by pictures shrunk to this side; 0: by the vision tower's summaries."""
    open_perception: bool = False
    """The perception token sees both dynamics: labels leak, so this is only to compare with."""

    def __post_init__(self) -> None:
        if self.next_offset is not None and not 1 <= self.next_offset <= self.action_horizon:
            raise ValueError(f"next_offset must be 1 to the horizon of {self.action_horizon}, got {self.next_offset}")
        if not 0 <= self.next_pixels <= self.image_size:
            raise ValueError(f"next_pixels must be 0 to the picture's {self.image_size}, got {self.next_pixels}")

    @property
    def next_step(self) -> int:
        """Steps after o_t at which the next observation is seen."""
        return self.action_horizon if self.next_offset is None else self.next_offset

    @property
    def reads_state(self) -> bool:
        """Whether prompts tell the state."""
        return self.discrete_state_input and not self.state_token

    @property
    def image_size(self) -> int:
        return self.vision.image_size


def fingerprint(config: VLAConfig, state: Mapping[str, StoredTensor]) -> str:
    """`VLA.fingerprint` of the model with this config and state dict, read chunk by chunk."""
    digest = hashlib.sha256(json.dumps(config_identity(config), sort_keys=True).encode())
    for name in sorted(state):
        digest.update(name.encode())
        for chunk in state[name].chunks():
            digest.update(chunk)
    return digest.hexdigest()[:16]


def config_identity(config: Any) -> dict[str, Any]:
    """What a config says otherwise than its defaults: a field that is added later changes no fingerprint."""
    told: dict[str, Any] = {"kind": type(config).__name__}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if default is MISSING or value != default:
            told[f.name] = config_identity(value) if is_dataclass(value) else value
    return told
