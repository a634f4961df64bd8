"""Vision towers: pixels to tokens. Two kinds with one interface; which one a model has is part of its config.

- `SigLIP`: the patch transformer of PaliGemma (arXiv 2303.15343), for full-size models.
- `KeypointTower`: convolutions to heat maps, spatial softmax to keypoints (arXiv 1504.00702), for models that train on
  a CPU: a pointing accuracy below one pixel is learned in minutes.

`tower(images)` gives tokens `[B, N, D]`; `tower.summary(tokens)` the next-observation features `[B, n, F]`;
`tower.connector(width)` a module that brings tokens to the VLM's width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class SigLIPConfig:
    """Sizes of a SigLIP vision transformer."""

    width: int = 1152
    mlp_dim: int = 4304
    depth: int = 27
    num_heads: int = 16
    patch_size: int = 14
    image_size: int = 224
    summary_grid: int = 1
    """Next-observation features: the patch grid pooled to this many tokens a side."""

    def build(self) -> "SigLIP":
        return SigLIP(self)


class SigLIPBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        normed = self.norm1(x)
        q, k, v = (
            p(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class SigLIP(nn.Module):
    """Patch embedding, learned positions, transformer, final norm."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
        self.config = config
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(self.side**2, config.width))
        self.blocks = nn.ModuleList(SigLIPBlock(config) for _ in range(config.depth))
        self.post_norm = nn.LayerNorm(config.width, eps=1e-6)

    @property
    def summary_shape(self) -> tuple[int, int]:
        return self.config.summary_grid**2, self.config.width

    @property
    def num_tokens(self) -> int:
        return self.side**2

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        _check_square(images, self.config.image_size)
        x = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding
        x = x.to(self.post_norm.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.post_norm(x)

    def summary(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B n F"]:
        """The patch grid, average-pooled."""
        grid = tokens.transpose(1, 2).unflatten(-1, (self.side, self.side))
        return F.adaptive_avg_pool2d(grid, self.config.summary_grid).flatten(2).transpose(1, 2)

    def connector(self, width: int) -> nn.Module:
        return nn.Linear(self.config.width, width)


@dataclass(frozen=True)
class KeypointTowerConfig:
    """Sizes of a keypoint tower. The first `named` keypoints are trained to point, the rest are free."""

    image_size: int = 64
    channels: tuple[int, int, int] = (24, 48, 64)
    named: int = 5
    free: int = 7
    grid: int = 3
    feature_dim: int = 16
    """Appearance numbers that each keypoint and each grid cell carries."""
    depth_width: int = 0
    """Hidden units of the head that tells how far the named keypoints are; 0: they have no depth."""
    half_field: float = 0.414
    """Tangent of half the field of view (45 degrees) by which places in the picture are told in space."""

    def build(self) -> "KeypointTower":
        return KeypointTower(self)

    @property
    def keypoints(self) -> int:
        return self.named + self.free

    @property
    def axes(self) -> int:
        """Coordinates of a keypoint: two in the picture or, with a depth head, three in space."""
        return 3 if self.depth_width else 2


class Pointing(NamedTuple):
    """Where the keypoints are."""

    xyz: Float[Tensor, "B K axes"]
    """x, y in [-1, 1] from the top left; with a depth head also the logarithm of the depth, standardised (0 of free
    keypoints)."""
    presence: Float[Tensor, "B K"]
    """Log of the odds of each one's presence."""
    log_heat: Float[Tensor, "B K h w"]
    doubt: Float[Tensor, "B K"] | None = None
    """With a depth head: log of the expected error of the depths, in tenths of them; the first one's own, the others'
    relative to it. 0 of free keypoints."""

    @property
    def xy(self) -> Float[Tensor, "B K 2"]:
        return self.xyz[..., :2]


class KeypointTower(nn.Module):
    """A small U-shaped convolution net with a spatial softmax.

    A token is `[place..., (doubt,) presence, spread, appearance...]`; grid tokens have the place of their cell and
    neither doubt nor spread. With a depth head, places are in space (`in_space`) and come with a doubt. One camera sees
    depth in the sizes and the places of things it knows: the depth head reads the places and the surroundings of all
    named keypoints, and the picture as a whole.
    """

    depth_mean: Float[Tensor, ""]
    """Of the logarithm of depths in metres."""
    depth_std: Float[Tensor, ""]

    def __init__(self, config: KeypointTowerConfig):
        super().__init__()
        self.config = config
        c1, c2, c3 = config.channels
        self.stem = nn.Sequential(
            _conv(3, c1, 5, stride=2), _conv(c1, c1, 3), _conv(c1, c2, 3, stride=2), _conv(c2, c2, 3)
        )
        self.deep = nn.Sequential(_conv(c2, c3, 3, stride=2), *(Residual(c3) for _ in range(3)))
        self.merge = nn.Sequential(_conv(c2 + c3, c2, 1), _conv(c2, c2, 3))
        self.heat = nn.Conv2d(c2, config.keypoints, 1)
        self.presence = nn.Linear(c2, config.keypoints)
        self.appearance = nn.Conv2d(c2, config.feature_dim, 1)
        if config.depth_width:
            seen, hidden = config.named * (2 + c2) + c2, config.depth_width
            self.depth = nn.Sequential(
                *(nn.Linear(seen, hidden), nn.SiLU()),
                *(nn.Linear(hidden, hidden), nn.SiLU()),
                nn.Linear(hidden, 2 * config.named),
            )
            self.register_buffer("depth_mean", torch.zeros(()))
            self.register_buffer("depth_std", torch.ones(()))

    @property
    def summary_shape(self) -> tuple[int, int]:
        return 1, self.config.axes * self.config.keypoints

    @property
    def token_dim(self) -> int:
        return self.config.axes + bool(self.config.depth_width) + 2 + self.config.feature_dim

    @property
    def num_tokens(self) -> int:
        return self.config.keypoints + self.config.grid**2

    def maps(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        """Features at a quarter of the resolution, with the context of an eighth."""
        _check_square(images, self.config.image_size)
        fine = self.stem(images.contiguous(memory_format=torch.channels_last))
        coarse = F.interpolate(self.deep(fine), size=fine.shape[-2:], mode="bilinear")
        return self.merge(torch.cat([fine, coarse], dim=1))

    def point(self, maps: Float[Tensor, "B C h w"]) -> Pointing:
        logits = self.heat(maps)
        log_heat = logits.flatten(2).log_softmax(-1).unflatten(-1, logits.shape[-2:])
        heat = log_heat.exp()
        grid = _cell_centres(*logits.shape[-2:], like=heat)
        xy = torch.einsum("bkhw,hwc->bkc", heat, grid)
        pooled = torch.einsum("bkhw,bchw->bkc", heat, maps)
        presence = (pooled * self.presence.weight).sum(-1) + self.presence.bias
        if not self.config.depth_width:
            return Pointing(xy, presence, log_heat)
        named = torch.cat([xy, pooled], dim=-1)[:, : self.config.named].flatten(1)
        told = self.depth(torch.cat([named, maps.mean((-2, -1))], dim=-1)).chunk(2, dim=-1)
        depth, doubt = (F.pad(values, (0, self.config.free)) for values in told)
        return Pointing(torch.cat([xy, depth[..., None]], dim=-1), presence, log_heat, doubt)

    def depths(self, xyz: Float[Tensor, "B K 3"]) -> Float[Tensor, "B K"]:
        """Depths in metres."""
        return (xyz[..., 2] * self.depth_std + self.depth_mean).exp()

    def in_space(self, xyz: Float[Tensor, "B K axes"]) -> Float[Tensor, "B K axes"]:
        """Where keypoints are in front of the camera: to the right, down, and further away than the mean depth.

        In units of half the picture's width at the (geometric) mean depth. A camera whose field of view is not the
        assumed one sees space stretched: by a factor that is constant, and so one more thing that a context can tell.
        What an arm does is linear in these coordinates, as it is not in those of a picture, which they are without a
        depth head.
        """
        if not self.config.depth_width:
            return xyz
        depth = (xyz[..., 2:] * self.depth_std).exp()
        return torch.cat([xyz[..., :2] * depth, (depth - 1.0) / self.config.half_field], dim=-1)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        maps = self.maps(images)
        pointing, appearance = self.point(maps), self.appearance(maps)
        heat = pointing.log_heat.exp()
        grid = _cell_centres(*heat.shape[-2:], like=heat)
        offset = grid[None, None] - pointing.xy[:, :, None, None]
        spread = (heat * offset.square().sum(-1)).sum((-2, -1)).sqrt()
        seen = torch.einsum("bkhw,bchw->bkc", heat, appearance)
        flags = [pointing.presence.sigmoid(), spread]
        if pointing.doubt is not None:
            flags.insert(0, pointing.doubt)
        keypoints = torch.cat([self.in_space(pointing.xyz), torch.stack(flags, dim=-1), seen], dim=-1)
        return torch.cat([keypoints, self._grid_tokens(appearance)], dim=1)

    def _grid_tokens(self, appearance: Tensor) -> Tensor:
        n = self.config.grid
        cells = F.adaptive_avg_pool2d(appearance, n).flatten(2).transpose(1, 2)
        centres = _cell_centres(n, n, like=cells).flatten(0, 1).expand(len(cells), -1, -1)
        flags = cells.new_zeros(*cells.shape[:2], self.token_dim - 2 - self.config.feature_dim)
        flags[..., -2] = 1.0  # present, without spread
        return torch.cat([centres, flags, cells], dim=-1)

    def summary(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 F"]:
        """The keypoints' coordinates as one vector."""
        return tokens[:, : self.config.keypoints, : self.config.axes].flatten(1)[:, None]

    def connector(self, width: int) -> nn.Module:
        return KeypointConnector(self.token_dim, self.num_tokens, width, axes=self.config.axes)


class KeypointConnector(nn.Module):
    """Keypoint tokens to the VLM's width: Fourier features of the coordinates, an MLP, and which keypoint it is."""

    def __init__(self, token_dim: int, num_tokens: int, width: int, octaves: int = 4, axes: int = 2):
        super().__init__()
        self.octaves, self.axes = octaves, axes
        self.fc1 = nn.Linear(token_dim + 2 * axes * octaves, width)
        self.fc2 = nn.Linear(width, width)
        self.identity = nn.Parameter(torch.randn(num_tokens, width))

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        scale = torch.pi / 2 * 2.0 ** torch.arange(self.octaves, device=tokens.device)
        angle = (tokens[..., : self.axes, None] * scale).flatten(-2)
        x = self.fc1(torch.cat([tokens, angle.sin(), angle.cos()], dim=-1))
        return self.fc2(F.gelu(x + self.identity))


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels, 3), _conv(channels, channels, 3))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.body(x)


def _conv(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    groups = 8 if c_out % 8 == 0 else 1
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, c_out), nn.SiLU())


def _cell_centres(height: int, width: int, *, like: Tensor) -> Float[Tensor, "h w 2"]:
    """(x, y) of each cell's centre in [-1, 1]."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * 2 / width - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def _check_square(images: Tensor, size: int) -> None:
    if images.shape[-2:] != (size, size):
        raise ValueError(
            f"the vision tower reads {size}x{size} pixels, got {tuple(images.shape[-2:])}; resize with padding first"
        )


VisionConfig = SigLIPConfig | KeypointTowerConfig
