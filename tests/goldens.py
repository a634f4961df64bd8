"""Reference numbers in tests/data/goldens (see its README): inputs, outputs and gradients of openpi's models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from selfalign.types import ActionChunk, Observation, Transition

ROOT = Path(__file__).parent / "data" / "goldens"
OPENPI = ("openpi_pi0", "openpi_pi05")


@dataclass(frozen=True)
class OpenPIGolden:
    """One small checkpoint of openpi, and what openpi computes with it."""

    directory: Path
    info: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def read(cls, name: str) -> "OpenPIGolden":
        directory = ROOT / name
        inputs = load_file(ROOT / "openpi_images.safetensors") | load_file(directory / "inputs.safetensors")
        info = json.loads((directory / "info.json").read_text())
        return cls(directory, info, inputs, load_file(directory / "outputs.safetensors"))

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Of the mean loss, by openpi's names."""
        return load_file(self.directory / "grads.safetensors")

    @property
    def settings(self) -> dict[str, Any]:
        """What the tensors do not tell."""
        return {
            "head_dim": self.info["vlm"]["head_dim"],
            "vision_heads": self.info["vision"]["num_attention_heads"],
            "action_horizon": self.info["action_horizon"],
            "max_token_len": self.info["max_token_len"],
            "cameras": tuple(self.info["cameras"]),
        }

    @property
    def batch(self) -> Transition:
        cameras = self.info["cameras"]
        observation = Observation(
            images={c: pixels(self.inputs[f"image_u8.{c}"]) for c in cameras},
            image_masks={c: self.inputs[f"image_mask.{c}"] for c in cameras},
            state=self.inputs["state"],
            tokens=self.inputs["tokens"],
            token_mask=self.inputs["token_mask"],
        )
        return Transition(observation, ActionChunk(self.inputs["actions"]))

    @property
    def rows(self) -> Tensor:
        """The prefix tokens that are kept of large outputs."""
        return self.outputs["rows"]


def pixels(image_BHWC: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to [-1, 1], [B, 3, H, W]."""
    return (image_BHWC.float() / 255 * 2 - 1).permute(0, 3, 1, 2)
