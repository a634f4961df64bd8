"""Small steps between a robot's numbers and a model's: pixels, sizes, padding and words."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


class Tokenizer(Protocol):
    """What turns instructions into tokens; `selfalign.model.tokenizer` has implementations."""

    reads_state: bool
    """Whether prompts tell the normalised state (pi0.5), which `encode` then wants."""

    def encode(
        self, prompts: Sequence[str], states: Sequence[Float[np.ndarray, " _"]] | None = None
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens padded on the right to a common length L, and True where they are real."""
        ...


def pixels_to_model(frames: UInt8[Tensor, "*lead H W 3"] | UInt8[np.ndarray, "*lead H W 3"]) -> Tensor:
    """uint8 channel-last -> float32 [..., 3, H, W] in [-1, 1] (0 -> -1, 255 -> +1).

    Raises:
        ValueError: not uint8, or not channel-last RGB.
    """
    pixels = torch.from_numpy(np.require(frames, requirements=("C", "W"))) if isinstance(frames, np.ndarray) else frames
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"images must be uint8 [..., H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0)


def pixels_from_model(images: Float[Tensor, "*lead 3 H W"]) -> UInt8[np.ndarray, "*lead H W 3"]:
    """Undoes `pixels_to_model`; values beyond [-1, 1] are clipped."""
    pixels = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).cpu().numpy()


def resize_with_pad(frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int) -> UInt8[np.ndarray, "T h w 3"]:
    """Resizes to fit into height x width without distortion, and fills the rest with black, evenly on both sides.

    What openpi's client does to a robot's pixels; `resize_with_pad_torch` is what its model does to images.
    """
    count, old_height, old_width, _ = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
    fit = _fit((old_height, old_width), (height, width))
    result = np.zeros((count, height, width, 3), dtype=np.uint8)
    for target, frame in zip(result, frames, strict=True):
        # Pillow's bilinear filter widens with the scale, so a smaller image is an average and not a sample.
        small = Image.fromarray(frame).resize((fit.width, fit.height), Image.Resampling.BILINEAR)
        target[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = np.asarray(small)
    return result


def resize_with_pad_torch(images: Float[Tensor, "B 3 H W"], height: int, width: int) -> Float[Tensor, "B 3 h w"]:
    """The same for images in [-1, 1] on their device: bilinear without antialiasing, the rest is -1 (black).

    It samples where `resize_with_pad` averages, so the two differ where an image is made smaller.
    """
    if tuple(images.shape[-2:]) == (height, width):
        return images
    fit = _fit((images.shape[-2], images.shape[-1]), (height, width))
    small = torch.nn.functional.interpolate(images, (fit.height, fit.width), mode="bilinear", align_corners=False)
    right, bottom = width - fit.width - fit.left, height - fit.height - fit.top
    return torch.nn.functional.pad(small.clamp(-1, 1), (fit.left, right, fit.top, bottom), value=-1.0)


class _Fit(NamedTuple):
    """Where a resized image stands in its frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def _fit(old: tuple[int, int], new: tuple[int, int]) -> _Fit:
    """The largest undistorted image in the middle of a frame; fractions are cut off, and a spare row goes below."""
    ratio = max(old[0] / new[0], old[1] / new[1])
    height, width = max(1, int(old[0] / ratio)), max(1, int(old[1] / ratio))
    return _Fit((new[0] - height) // 2, (new[1] - width) // 2, height, width)


def pad_dims(values: Array, dim: int) -> Array:
    """[..., D] -> [..., dim], zeros at the end.

    Raises:
        ValueError: D > dim.
    """
    missing = dim - values.shape[-1]
    if missing < 0:
        raise ValueError(f"{values.shape[-1]} dimensions do not fit into the model's {dim}")
    if isinstance(values, Tensor):
        return torch.nn.functional.pad(values, (0, missing))
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def unpad_dims(values: Array, dim: int) -> Array:
    """[..., D] -> [..., dim], the first dimensions.

    Raises:
        ValueError: D < dim.
    """
    if values.shape[-1] < dim:
        raise ValueError(f"{values.shape[-1]} dimensions hold no {dim}")
    return values[..., :dim]


def dim_mask(real: int, dim: int) -> Bool[Tensor, " dim"]:
    """True on the first `real` of `dim` dimensions."""
    return torch.arange(dim) < real


def tokenize_tasks(tasks: Sequence[str], tokenizer: Tokenizer) -> tuple[Int[Tensor, "K L"], Bool[Tensor, "K L"]]:
    """Tokens and mask of each distinct task once, to be gathered by task index while training."""
    tokens, mask = tokenizer.encode(list(tasks))
    if tokens.shape != mask.shape or len(tokens) != len(tasks):
        raise ValueError(
            f"the tokenizer gave tokens {list(tokens.shape)} and mask {list(mask.shape)} for {len(tasks)} tasks"
        )
    return tokens, mask
