"""How recorded frames may look otherwise: in other colours, or through cameras that are turned and zoomed.

The vision tower is frozen while a policy learns, so it runs over all frames once for each look.
"""

from collections.abc import Iterator
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfalign.data.cache import EpisodeCache
from selfalign.data.homography import CameraTurn, warp
from selfalign.data.transforms import pixels_to_model
from selfalign.train.pointing import colour_jitter

RECOLOURED = "recoloured"
_TURNED = "turned-"


def turned_looks(count: int) -> tuple[str, ...]:
    """Names of so many turned views."""
    return tuple(f"{_TURNED}{number}" for number in range(1, count + 1))


def camera_turn(camera: str, rig: int, look: str) -> CameraTurn:
    """The turn of a rig's camera in a turned look: always the same one."""
    number = int(look.removeprefix(_TURNED))
    return CameraTurn.sample(np.random.default_rng([crc32(camera.encode()), rig, number]), camera)


def picture_blocks(
    cache: EpisodeCache, camera: str, look: str | None = None, batch: int = 256, begin: int = 0
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """The frames of a camera from `begin` on as the model reads them, in [-1, 1], block by block; `look` None: as
    recorded."""
    images = cache.images(camera)
    rigs = cache.embodiment_index[cache.episode_of_frame]
    for start in range(begin, len(images), batch):
        frames = np.array(images[start : start + batch])  # torch warns of arrays that cannot be written to
        if look is not None and look.startswith(_TURNED):
            frames = _turned(frames, rigs[start : start + batch], camera, look)
        pixels = pixels_to_model(frames)
        generator = torch.Generator().manual_seed(start)  # so that a block does not depend on those before it
        yield colour_jitter(pixels, generator=generator) if look == RECOLOURED else pixels


def _turned(
    frames: UInt8[np.ndarray, "B H W 3"], rigs: Int[np.ndarray, " B"], camera: str, look: str
) -> UInt8[np.ndarray, "B H W 3"]:
    result = np.empty_like(frames)
    for rig in np.unique(rigs):
        matrix = camera_turn(camera, int(rig), look).matrix(*frames.shape[1:3])
        result[rigs == rig] = warp(frames[rigs == rig], matrix)
    return result
