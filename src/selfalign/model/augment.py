"""Random changes of the images while training, on the device and drawn for each sample; never in eval.

openpi's constants: cameras that are not on a wrist are cropped to 95 % and resized back, then rotated by up to 5
degrees; all cameras change in brightness, contrast and saturation. openpi's PyTorch path draws once for the whole
batch; here every sample has its own draw, and with equal draws the images are equal.

Shapes: B batch, S image side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class AugmentConfig:
    """How far images may change."""

    crop: float = 0.95
    """Side of the crop, as a share of the image's."""
    rotation: float = 5.0
    """Degrees to either side; angles within 0.1 degree of 0 leave the image as it is."""
    brightness: tuple[float, float] = (0.7, 1.3)
    contrast: tuple[float, float] = (0.6, 1.4)
    saturation: tuple[float, float] = (0.5, 1.5)


SMALLEST_ANGLE = 0.1


@dataclass(frozen=True)
class Draw:
    """One draw for each sample."""

    top: Int[Tensor, " B"]
    left: Int[Tensor, " B"]
    angle: Float[Tensor, " B"]
    """Degrees."""
    brightness: Float[Tensor, " B"]
    contrast: Float[Tensor, " B"]
    saturation: Float[Tensor, " B"]


class Augment(nn.Module):
    """Augments a camera's images in training mode; in eval mode they pass through untouched. It has no parameters.

    A model augments where it is given one: `model.augment = Augment()`.
    """

    def __init__(self, config: AugmentConfig = AugmentConfig()):
        super().__init__()
        self.config = config

    def forward(self, images: Float[Tensor, "B 3 height width"], camera: str) -> Float[Tensor, "B 3 height width"]:
        """Images in [-1, 1] of one camera; only one with "wrist" in its name keeps its geometry."""
        if not self.training:
            return images
        draw = draw_changes(images, self.config)
        return recolour(images if "wrist" in camera else move(images, draw, self.config.crop), draw)


def draw_changes(images: Float[Tensor, "B 3 height width"], config: AugmentConfig) -> Draw:
    """A draw for each image, on the images' device."""
    count, device = len(images), images.device

    def offset(side: int) -> Tensor:
        return torch.randint(0, side - int(side * config.crop) + 1, (count,), device=device)

    def uniform(low: float, high: float) -> Tensor:
        return low + torch.rand(count, device=device) * (high - low)

    return Draw(
        top=offset(images.shape[2]),
        left=offset(images.shape[3]),
        angle=uniform(-config.rotation, config.rotation),
        brightness=uniform(*config.brightness),
        contrast=uniform(*config.contrast),
        saturation=uniform(*config.saturation),
    )


def move(images: Float[Tensor, "B 3 height width"], draw: Draw, crop: float) -> Float[Tensor, "B 3 height width"]:
    """Crops each image at its own place, resizes it back, and turns it; what comes in from outside is black."""
    height, width = images.shape[2:]
    rows = draw.top[:, None] + torch.arange(int(height * crop), device=images.device)
    columns = draw.left[:, None] + torch.arange(int(width * crop), device=images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    cropped = images.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    resized = F.interpolate(cropped, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(draw.angle.abs()[:, None, None, None] > SMALLEST_ANGLE, rotate(resized, draw.angle), resized)


def rotate(
    images: Float[Tensor, "B 3 height width"], degrees: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 height width"]:
    """Turns each image by its own angle about its centre."""
    height, width = images.shape[2:]
    options = {"device": images.device, "dtype": images.dtype}
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, **options), torch.linspace(-1, 1, width, **options), indexing="ij"
    )
    angle = degrees.to(images.dtype).deg2rad()[:, None, None]
    sin, cos = angle.sin(), angle.cos()
    grid = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    # Black outside, as openpi's: its pixels are in [0, 1] here, ours in [-1, 1].
    return F.grid_sample(images + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1


def recolour(images: Float[Tensor, "B 3 height width"], draw: Draw) -> Float[Tensor, "B 3 height width"]:
    """Changes brightness, contrast about the image's mean, and saturation about each pixel's mean; clips to [-1, 1]."""
    brightness, contrast, saturation = (
        x.to(images.dtype)[:, None, None, None] for x in (draw.brightness, draw.contrast, draw.saturation)
    )
    pixels = (images / 2 + 0.5) * brightness
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * contrast + mean
    grey = pixels.mean(dim=1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 1) * 2 - 1
