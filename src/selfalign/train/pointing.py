"""Teaching a keypoint tower to point, on source data with known image points (from a simulator or a labelled few).

The tower is trained first and then frozen: policies that learn to see and to act at once learn both slowly.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from selfalign.data.transforms import pixels_to_model
from selfalign.model.vision import KeypointTower


@dataclass(frozen=True)
class PointingConfig:
    """How the tower is trained."""

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 2e-3
    sigma: float = 0.06
    """Width of the target heat maps, in units of half the image."""
    seed: int = 0


def pointing_loss(
    tower: KeypointTower, images: Tensor, points: Float[Tensor, "B K 3"], sigma: float
) -> dict[str, Tensor]:
    """Cross-entropy to a Gaussian heat map, distance of the soft-argmax, and presence, of the named keypoints.

    Args:
        points: (u, v, visible) with u, v in [0, 1] from the top left.
    """
    pointing = tower.point(tower.maps(images))
    visible = (points[..., 2] > 0.5) & (points[..., :2] > 0).all(-1) & (points[..., :2] < 1).all(-1)
    target = torch.where(visible[..., None], points[..., :2] * 2 - 1, torch.zeros_like(points[..., :2]))
    named = tower.config.named
    log_heat, xy, presence = pointing.log_heat[:, :named], pointing.xy[:, :named], pointing.presence[:, :named]
    weight = visible.float()
    count = weight.sum().clamp_min(1)
    heat = _gaussian(target, (log_heat.shape[-2], log_heat.shape[-1]), sigma)
    cross_entropy = -(heat * log_heat).sum((-2, -1))
    distance = (xy - target).norm(dim=-1)
    return {
        "heat": (cross_entropy * weight).sum() / count,
        "distance": (distance * weight).sum() / count,
        "presence": F.binary_cross_entropy_with_logits(presence, weight),
    }


def _gaussian(centre: Float[Tensor, "B K 2"], size: tuple[int, int], sigma: float) -> Float[Tensor, "B K h w"]:
    h, w = size
    y = (torch.arange(h, device=centre.device) + 0.5) * 2 / h - 1
    x = (torch.arange(w, device=centre.device) + 0.5) * 2 / w - 1
    square = (x - centre[..., 0, None, None]) ** 2 + (y[:, None] - centre[..., 1, None, None]) ** 2
    heat = (-square / (2 * sigma**2)).exp()
    return heat / heat.sum((-2, -1), keepdim=True).clamp_min(1e-9)


def colour_jitter(images: Float[Tensor, "B 3 S S"], *, generator: torch.Generator | None = None) -> Tensor:
    """Per sample: contrast, brightness, a tint, blur-free noise. Nothing that moves a point."""
    batch = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(batch, channels, 1, 1, generator=generator)

    mean = images.mean((1, 2, 3), keepdim=True)
    out = (images - mean) * draw(0.6, 1.4) + mean + draw(-0.25, 0.25)
    out = out + draw(-0.08, 0.08, 3) + draw(0, 0.06) * torch.randn(images.shape, generator=generator)
    return out.clamp(-1, 1)


def train_tower(
    tower: KeypointTower, images: np.ndarray, points: np.ndarray, config: PointingConfig = PointingConfig()
) -> dict[str, float]:
    """Train in place on frames `[N, S, S, 3]` uint8 and points `[N, K, 3]`; returns the last losses.

    The distance is reported in pixels.
    """
    rng, generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.learning_rate, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=min(0.5, 200 / config.steps)
    )
    tower.train()
    recent: list[float] = []
    bar = track(range(config.steps), description="pointing")
    for step in bar:
        rows = np.sort(rng.integers(len(images), size=config.batch_size))
        batch = colour_jitter(pixels_to_model(images[rows]), generator=generator)
        losses = pointing_loss(tower, batch, torch.from_numpy(points[rows]).float(), config.sigma)
        loss = 0.2 * losses["heat"] + 4 * losses["distance"] + 0.5 * losses["presence"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(float(losses["distance"].detach()))
        if step % 200 == 199:
            pixels = np.mean(recent[-200:]) * tower.config.image_size / 2
            print(
                f"pointing step {step + 1}: mean error {pixels:.2f} px, presence {float(losses['presence']):.3f}",
                flush=True,
            )
    tower.eval()
    return {"pixels": float(np.mean(recent[-100:]) * tower.config.image_size / 2)}


@torch.no_grad()
def pointing_error(tower: KeypointTower, images: np.ndarray, points: np.ndarray) -> Float[np.ndarray, " K"]:
    """Median error of each named keypoint in pixels, over the frames where it is in view."""
    errors = [[] for _ in range(tower.config.named)]
    for start in range(0, len(images), 256):
        xy = tower.eval().point(tower.maps(pixels_to_model(images[start : start + 256]))).xy
        target = torch.from_numpy(points[start : start + 256]).float()
        pixels = (xy[:, : len(errors)] - (target[..., :2] * 2 - 1)).norm(dim=-1) * tower.config.image_size / 2
        for k, row in enumerate(errors):
            row.append(pixels[:, k][target[:, k, 2] > 0.5].numpy())
    return np.array([np.median(np.concatenate(row)) for row in errors])
