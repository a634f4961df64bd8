"""Writing a `FeatureStore`: a frozen extractor runs over a data set once."""

import json
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfalign.data.extractors import FeatureExtractor, Projection
from selfalign.data.features import META, PROJECTION, STORE_FORMAT, FeatureStore
from selfalign.data.sources import SourceData
from selfalign.model.files import map_array
from selfalign.model.weights import read_json, write_json
from selfalign.workers import track

_PROGRESS = "progress.json"


def write_features(
    source: SourceData,
    cameras: tuple[str, ...],
    extractor: FeatureExtractor,
    projection: Projection | None,
    name: str,
    out: Path,
    batch_size: int = 64,
) -> FeatureStore:
    """Runs an extractor over all frames of a data set; goes on where an interrupted run stopped.

    Args:
        source: the data set.
        cameras: those of it that are seen.
        extractor: what sees them.
        projection: brings its features to the model's size; None: they have it.
        name: of what makes them, extractor and projection, under which they are known.
        out: folder of the features; where they are there already, they are opened.
        batch_size: frames that the extractor reads at once.

    Raises:
        ValueError: other features are at `out`.
        OSError: no room on the disk.
    """
    told = {
        "format": STORE_FORMAT,
        "name": name,
        "fingerprint": source.fingerprint,
        "cameras": list(cameras),
        "lengths": [ref.length for ref in source.refs],
    }
    if out.exists():
        store = FeatureStore.open(out)
        if (store.name, store.fingerprint, store.cameras) != (name, source.fingerprint, cameras):
            raise ValueError(f"{out} holds other features; choose another place or remove it first")
        return store
    partial = out.parent / f".{out.name}.partial"
    done = _resume(partial, told)
    starts = np.cumsum([0, *told["lengths"]])
    rest = range(done, len(source))
    for index, episode in zip(rest, track(source.episodes(rest), "computing features", total=len(rest)), strict=True):
        for camera in cameras:
            parts = np.array_split(episode.images[camera], -(-len(episode) // batch_size))
            values = np.concatenate([_features(extractor, projection, frames) for frames in parts])
            array = _array(partial / f"{camera}.npy", int(starts[-1]), values)
            array[starts[index] : starts[index + 1]] = values
            array.flush()
        write_json(partial / _PROGRESS, {**told, "done": index + 1})
    if projection is not None:
        np.savez(partial / PROJECTION, mean=projection.mean, components=projection.components)
    write_json(partial / META, told)
    (partial / _PROGRESS).unlink(missing_ok=True)
    partial.rename(out)
    return FeatureStore.open(out)


def _features(
    extractor: FeatureExtractor, projection: Projection | None, frames: np.ndarray
) -> Float[np.ndarray, "B n F"]:
    values = extractor(frames)
    return values.astype(np.float32) if projection is None else projection(values)


def _resume(partial: Path, told: dict) -> int:
    """Episodes that are done; a partial folder of something else is emptied."""
    path = partial / _PROGRESS
    if path.is_file():
        progress = read_json(path)
        if {**told, "done": progress.get("done")} == json.loads(json.dumps(progress)):
            return int(progress["done"])
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return 0


def _array(path: Path, frames: int, example: np.ndarray) -> np.memmap:
    if path.is_file():
        return np.lib.format.open_memmap(path, mode="r+")
    return map_array(path, np.float32, (frames, *example.shape[1:]))
