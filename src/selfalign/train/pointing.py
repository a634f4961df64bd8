"""Teaching a keypoint tower to point, on source data with known image points (from a simulator or a labelled few).

The tower is trained first and then frozen: policies that learn to see and to act at once learn both slowly.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from selfalign.configs import below, refuse
from selfalign.data.snapshots import Snapshots
from selfalign.data.transforms import pixels_to_model
from selfalign.model.vision import KeypointTower
from selfalign.model.weights import load_tensors, unique_tensors
from selfalign.train.bookmark import Bookmark
from selfalign.workers import track

SAVE_EVERY = 500
"""Steps after which the training of a tower is saved."""


@dataclass(frozen=True)
class PointingConfig:
    """How the tower is trained."""

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 2e-3
    sigma: float = 0.06
    """Width of the target heat maps, in units of half the image."""
    seed: int = 0

    def __post_init__(self) -> None:
        refuse("learning to point", below(self, steps=1, batch_size=1))


def pointing_loss(
    tower: KeypointTower, images: Tensor, points: Float[Tensor, "B K C"], sigma: float
) -> dict[str, Tensor]:
    """Cross-entropy to a Gaussian heat map, distance of the soft-argmax, presence and depth, of the named keypoints.

    Args:
        points: (u, v, visible[, depth]) with u, v in [0, 1] from the top left and the depth in metres, which a tower
            with a depth head needs. Depth errors are in tenths of the depth, the first keypoint's own and the others'
            relative to it: what is between two things counts more than where both are.
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
    losses = {
        "heat": (cross_entropy * weight).sum() / count,
        "distance": (distance * weight).sum() / count,
        "presence": F.binary_cross_entropy_with_logits(presence, weight),
    }
    if tower.config.depth_width:
        assert pointing.doubt is not None
        doubt = pointing.doubt[:, :named]
        log_depth = torch.where(visible, points[..., 3], torch.ones_like(points[..., 3])).log()
        off = 10 * (pointing.xyz[:, :named, 2] * tower.depth_std + tower.depth_mean - log_depth)
        apart = (off - off[:, :1]).abs() * weight * weight[:, :1]
        losses["depth"] = ((off.abs() * weight).sum() + 2 * apart.sum()) / count
        losses["doubt"] = _laplace(torch.cat([off[:, :1].abs(), apart[:, 1:]], dim=1).detach(), doubt, weight)
    return losses


def _laplace(
    errors: Float[Tensor, "B K"], log_scale: Float[Tensor, "B K"], weight: Float[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of absolute errors under Laplace distributions of those scales, less log 2."""
    weight = weight * weight[:, :1]
    return ((errors * (-log_scale).exp() + log_scale) * weight).sum() / weight.sum().clamp_min(1)


def _measure_depth(tower: KeypointTower, points: np.ndarray) -> None:
    """Sets what the tower's depths are standardised with."""
    if points.shape[-1] < 4:
        raise ValueError(
            f"a tower with a depth head needs points (u, v, visible, depth), got {points.shape[-1]} columns; "
            "record again, or build the tower with depth_width=0"
        )
    depth = np.log(points[..., 3][points[..., 2] > 0.5])
    tower.depth_mean.fill_(float(depth.mean()))
    tower.depth_std.fill_(float(depth.std()))


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


class _Training:
    """The training of a tower at some step: what it needs to go on as if it had never stopped."""

    def __init__(self, tower: KeypointTower, config: PointingConfig):
        self.tower, self.config, self.step = tower, config, 0
        self.rng, self.generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.AdamW(tower.parameters(), lr=config.learning_rate, weight_decay=1e-3, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.steps, pct_start=min(0.5, 200 / config.steps)
        )

    def advance(self, images: np.ndarray, points: np.ndarray) -> dict[str, Tensor]:
        """One step; returns its losses."""
        rows = np.sort(self.rng.integers(len(images), size=self.config.batch_size))
        batch = colour_jitter(pixels_to_model(images[rows]), generator=self.generator)
        losses = pointing_loss(self.tower, batch, torch.from_numpy(points[rows]).float(), self.config.sigma)
        loss = 0.2 * losses["heat"] + 4 * losses["distance"] + 0.5 * losses["presence"]
        loss = loss + 0.5 * losses.get("depth", 0.0) + 0.1 * losses.get("doubt", 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tower": unique_tensors(self.tower),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Goes on from what a file held."""
        load_tensors(self.tower, state["tower"], str(path))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def train_tower(
    tower: KeypointTower,
    images: np.ndarray,
    points: np.ndarray,
    config: PointingConfig = PointingConfig(),
    saved: Path | None = None,
) -> dict[str, float]:
    """Train in place on frames `[N, S, S, 3]` uint8 and points `[N, K, 3 or 4]`; returns the last losses.

    The distance is reported in pixels.

    Args:
        saved: file that the training is saved in every `SAVE_EVERY` steps, and goes on from; None: it is not saved.

    Raises:
        ValueError: the tower has a depth head and the points have no depth; or the file is of another training.
    """
    if tower.config.depth_width:
        _measure_depth(tower, points)
    training, mark = _Training(tower, config), None
    if saved is not None:
        mark = Bookmark(saved, {"pictures": Snapshots(images, points).fingerprint, **asdict(config)})
        if (state := mark.read()) is not None:
            training.load_state_dict(state, saved)
    tower.train()
    recent: list[float] = []
    for step in track(range(training.step, config.steps), description="pointing"):
        losses = training.advance(images, points)
        recent.append(float(losses["distance"]))
        if step % 200 == 199:
            pixels = np.mean(recent[-200:]) * tower.config.image_size / 2
            names = [name for name in ("presence", "depth", "doubt") if name in losses]
            rest = ", ".join(f"{name} {float(losses[name]):.3f}" for name in names)
            print(f"pointing step {step + 1}: mean error {pixels:.2f} px, {rest}", flush=True)
        if mark is not None and training.step % SAVE_EVERY == 0:
            mark.write(training.state_dict())
    tower.eval()
    return {"pixels": float(np.mean(recent[-100:]) * tower.config.image_size / 2)} if recent else {}


@torch.no_grad()
def pointing_error(tower: KeypointTower, images: np.ndarray, points: np.ndarray) -> dict[str, list[float]]:
    """Median errors of each named keypoint over the frames where it is in view.

    Returns:
        `median_error_px`; with a depth head also `median_depth_error_cm`: of the first keypoint its own, of the others
        relative to it, where both are in view.
    """
    named = tower.config.named
    xyz = torch.cat(
        [tower.eval().point(tower.maps(pixels_to_model(images[i : i + 256]))).xyz for i in range(0, len(images), 256)]
    )[:, :named]
    target = torch.from_numpy(points).float()
    visible = target[..., 2] > 0.5
    pixels = (xyz[..., :2] - (target[..., :2] * 2 - 1)).norm(dim=-1) * tower.config.image_size / 2
    errors = {"median_error_px": _medians(pixels, visible)}
    if tower.config.depth_width:
        off = 100 * (tower.depths(xyz) - target[..., 3])
        off[:, 1:] -= off[:, :1]
        errors["median_depth_error_cm"] = _medians(off.abs(), visible & visible[:, :1])
    return errors


def _medians(values: Float[Tensor, "N K"], chosen: Bool[Tensor, "N K"]) -> list[float]:
    return [float(v[c].median()) for v, c in zip(values.T, chosen.T, strict=True)]
