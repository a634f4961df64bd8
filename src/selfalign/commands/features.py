"""`selfalign features`: a frozen extractor runs over a data set once; what it saw of each frame is stored."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfalign.configs import below, refuse
from selfalign.data.extractors import FeatureExtractor, Projection, TimmFeatures, TowerFeatures
from selfalign.data.feature_writer import write_features
from selfalign.data.features import FeatureStore
from selfalign.data.sources import SourceData
from selfalign.model.policy import VLA
from selfalign.model.weights import load_model
from selfalign.workers import track

SAMPLED_EPISODES = 100
"""Episodes from which principal components are fitted, at most."""


@dataclass(frozen=True)
class FeaturesConfig:
    """Compute features of next observations once, by a frozen extractor, and store them."""

    data: tuple[str, ...]
    """Data sets: lerobot:PATH[,PATH...], rlds:PATH@HZ, or paths alone."""
    out: Path
    """Folder of the features. An interrupted computation goes on where it stopped."""
    checkpoint: Path
    """Checkpoint of Selfalign's whose model (or one of its kind) will read them: it says their size and the cameras."""
    extractor: str = "tower"
    """The checkpoint's own vision tower, or the name of a vision transformer of timm, such as
    vit_small_patch14_dinov2, whose features are brought to the model's size by principal components."""
    weights: Path | None = None
    """File with the weights of timm's model; nothing is downloaded."""
    image_size: int = 224
    """Pixels that timm's model reads."""
    like: Path | None = None
    """Features of other data with the same extractor whose principal components are used: those that a model was
    pretrained with, where these are of the play that it is aligned to."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Pairs of a camera of the model and the data's camera that shows it, where they are called otherwise."""
    fit_frames: int = 4000
    """Frames from which principal components are fitted."""
    batch_size: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        refuse("features", below(self, image_size=1, fit_frames=1, batch_size=1))


def run(config: FeaturesConfig) -> FeatureStore:
    """Computes and stores.

    Raises:
        FileNotFoundError: no data, checkpoint or weights there.
        ValueError: something else is at `out`, a camera is missing, or extractor, weights and model do not fit.
        ImportError: timm is not installed.
    """
    source = SourceData.open(config.data, cameras=config.cameras or None)
    model = load_model(config.checkpoint)
    cameras = model.config.cameras
    source.require_cameras(cameras)
    extractor = make_extractor(config, model)
    projection = None if config.extractor == "tower" else _projection(config, source, extractor, model)
    name = extractor.digest + ("" if projection is None else f"-{projection.digest}")
    return write_features(source, cameras, extractor, projection, name, config.out, config.batch_size)


def make_extractor(config: FeaturesConfig, model: VLA) -> FeatureExtractor:
    """The tower, or timm's model with the tokens of the model's."""
    if config.extractor == "tower":
        return TowerFeatures(model.to(config.device))
    tokens, _ = model.next_shape
    grid = round(tokens**0.5)
    if grid * grid != tokens:
        raise ValueError(f"the model takes {tokens} tokens of a camera, which are no square grid")
    if config.weights is None:
        raise ValueError(f"give the file with the weights of {config.extractor} (--weights); nothing is downloaded")
    return TimmFeatures(config.extractor, config.weights, grid=grid, image_size=config.image_size, device=config.device)


def _projection(config: FeaturesConfig, source: SourceData, extractor: FeatureExtractor, model: VLA) -> Projection:
    _, size = model.next_shape
    if config.like is not None:
        other = FeatureStore.open(config.like)
        if other.projection is None or not other.name.startswith(extractor.digest):
            raise ValueError(f"{config.like} was made by {other.name}, not by {extractor.digest} with components")
        return other.projection
    picks = np.unique(np.linspace(0, len(source) - 1, SAMPLED_EPISODES).round().astype(int)).tolist()
    each = -(-config.fit_frames // (len(picks) * len(model.config.cameras)))
    parts = []
    for episode in track(source.episodes(picks), "sampling frames", total=len(picks)):
        rows = np.unique(np.linspace(0, len(episode) - 1, each).round().astype(int))
        parts += [extractor(episode.images[camera][rows]) for camera in model.config.cameras]
    samples = np.concatenate(parts)
    return Projection.fit(samples.reshape(-1, samples.shape[-1]), size)
