"""Frozen extractors: what they see in a picture is what a model may be told of next observations.

Features of another size than the model takes are brought to it by principal components.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from selfalign.data.transforms import pixels_to_model, resize_with_pad
from selfalign.model.policy import VLA


class FeatureExtractor(Protocol):
    """Pictures -> features; frozen."""

    @property
    def digest(self) -> str:
        """A short hash of what it computes."""
        ...

    def __call__(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B n F"]: ...


class TowerFeatures:
    """A model's own vision tower: its summary of each picture, not normalised."""

    def __init__(self, model: VLA) -> None:
        self._vision, self._size = model.vision.eval(), model.config.image_size
        hashed = hashlib.sha256()
        for name, tensor in sorted(self._vision.state_dict().items()):
            hashed.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.digest = f"tower-{hashed.hexdigest()[:12]}"

    @torch.no_grad()
    def __call__(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B n F"]:
        device = next(self._vision.parameters()).device
        images = pixels_to_model(resize_with_pad(frames, self._size, self._size)).to(device)
        return self._vision.summary(self._vision(images)).float().cpu().numpy()


class TimmFeatures:
    """Patch tokens of a vision transformer of timm (DINOv2 among them), averaged over a grid.

    Weights come from a file: nothing is downloaded.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: no weights there.
        ValueError: no such model, weights of another one, or a model without patch tokens.
    """

    def __init__(
        self, name: str, weights: str | Path, *, grid: int = 1, image_size: int = 224, device: str = "cpu"
    ) -> None:
        """Opens a model.

        Args:
            name: timm's, such as `vit_small_patch14_dinov2`.
            weights: its safetensors or PyTorch file.
            grid: the tokens of a picture are averaged to `grid` x `grid`.
            image_size: pixels of the side that pictures are resized to; a multiple of the patch's side.
            device: where it runs.
        """
        timm, path = _timm(), Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"no weights of {name} at {path}; download them beforehand and give their path")
        try:
            model = timm.create_model(name, num_classes=0, img_size=image_size)
            # DINOv2's positions, for instance, are of 518 px; timm's own filter resamples them.
            resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
            timm.models.load_checkpoint(model, str(path), filter_fn=resample, weights_only=True)
        except (RuntimeError, TypeError, AssertionError, KeyError) as error:
            raise ValueError(f"{path} does not fit timm's {name} at {image_size} px: {str(error)[:300]}") from error
        self._model = model.eval().requires_grad_(False).to(device)
        self._size, self._grid, self._prefix = image_size, grid, getattr(model, "num_prefix_tokens", 0)
        told = timm.data.resolve_model_data_config(model)
        self._mean, self._std = (torch.tensor(told[key], device=device)[:, None, None] for key in ("mean", "std"))
        hashed = hashlib.sha256(path.read_bytes())
        self.digest = f"{name}-{image_size}-{grid}-{hashed.hexdigest()[:12]}"

    @torch.no_grad()
    def __call__(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B n F"]:
        pixels = pixels_to_model(resize_with_pad(frames, self._size, self._size)).to(self._mean.device)
        tokens = self._model.forward_features(((pixels + 1) / 2 - self._mean) / self._std)
        if tokens.ndim != 3:
            raise ValueError(
                f"a model that gives {list(tokens.shape)} has no patch tokens; choose a vision transformer"
            )
        return pool_tokens(tokens[:, self._prefix :], self._grid).float().cpu().numpy()


def pool_tokens(tokens: Float[Tensor, "B N F"], grid: int) -> Float[Tensor, "B n F"]:
    """A square of patch tokens averaged to `grid` x `grid`, row by row.

    Raises:
        ValueError: the tokens are no square.
    """
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} patch tokens are no square")
    square = tokens.transpose(1, 2).unflatten(-1, (side, side))
    return F.adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components: features of D numbers told by the F that vary most, each with variance 1 where fitted."""

    mean: Float[np.ndarray, " D"]
    components: Float[np.ndarray, "D F"]

    @classmethod
    def fit(cls, features: Float[np.ndarray, "M D"], size: int) -> Self:
        """From a sample.

        Raises:
            ValueError: fewer samples or numbers than components.
        """
        if size > min(features.shape):
            raise ValueError(
                f"{features.shape[0]} samples of {features.shape[1]} features have no {size} principal components; "
                "take more frames, a larger extractor, or a model that takes fewer"
            )
        mean = features.mean(axis=0, dtype=np.float64)
        _, scale, axes = np.linalg.svd(features - mean, full_matrices=False)
        axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]  # SVD leaves signs open
        spread = np.maximum(scale[:size] / np.sqrt(len(features)), 1e-12)
        return cls(mean, axes[:size].T / spread)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.mean.tobytes() + np.ascontiguousarray(self.components).tobytes()).hexdigest()[:8]

    def __call__(self, features: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead F"]:
        return ((features - self.mean) @ self.components).astype(np.float32)


def _timm() -> Any:
    try:
        import timm
        import timm.data
        import timm.models
    except ImportError as error:
        raise ImportError(f"features of timm's models need {error.name}: pip install 'selfalign[features]'") from error
    except RuntimeError as error:  # a torchvision of another build than torch
        raise ImportError(f"timm cannot be imported ({error}); its torchvision must be built for your torch") from error
    return timm
