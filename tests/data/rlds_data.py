"""A small RLDS data set, written without what reads it: protobuf's wire format by hand, TensorBoard's record writer."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from selfalign.data.episodes import Episode

Values = list[bytes] | np.ndarray


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    number &= 2**64 - 1
    head = bytearray()
    while number > 127:
        head.append(number & 127 | 128)
        number >>= 7
    return bytes([*head, number])


def block(number: int, data: bytes) -> bytes:
    """Field `number` with a length in front (wire type 2)."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: Values) -> bytes:
    """`tf.train.Feature`: bytes_list = 1, float_list = 2, int64_list = 3; numbers are packed."""
    if isinstance(values, list):
        return block(1, b"".join(block(1, item) for item in values))
    if values.dtype.kind == "f":
        return block(2, block(1, values.astype("<f4").tobytes()))
    return block(3, block(1, b"".join(varint(int(value)) for value in values)))


def example(features: dict[str, Values]) -> bytes:
    entries = (block(1, block(1, name.encode()) + block(2, feature(values))) for name, values in features.items())
    return block(1, b"".join(entries))


def write_records(path: Path, records: list[bytes]) -> None:
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
        writer.flush()


def tensor(dtype: str, *shape: int) -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]} if shape else {}, "dtype": dtype}}


def picture(*shape: int) -> dict:
    told = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"image": {"shape": told, "dtype": "uint8", "encodingFormat": "png"}}


def group(**features: dict) -> dict:
    return {"featuresDict": {"features": features}}


STEP = group(
    action=tensor("float64", 4),
    observation=group(image=picture(16, 24, 3), wrist=picture(), depth=picture(16, 24, 1), state=tensor("float32", 4)),
    language_instruction={"text": {}},
    language_embedding=tensor("float32", 512),
    is_first=tensor("bool"),
    reward=tensor("float32"),
)


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def record(episode: Episode) -> bytes:
    """An episode as TFDS stores it: every feature of all steps end to end."""
    steps = len(episode)
    return example(
        {
            "episode_metadata/file_path": [b"/somewhere.hdf5"],
            "steps/action": episode.action.reshape(-1),
            "steps/observation/state": episode.state.reshape(-1),
            "steps/observation/image": [png(frame) for frame in episode.images["image"]],
            "steps/observation/wrist": [png(frame) for frame in episode.images["wrist"]],
            "steps/observation/depth": [png(frame[..., 0]) for frame in episode.images["image"]],
            "steps/language_instruction": [episode.task.encode()] * steps,
            "steps/language_embedding": np.zeros(512 * steps, np.float32),
            "steps/is_first": np.arange(steps) == 0,
            "steps/reward": np.zeros(steps, np.float32),
        }
    )


def write_rlds(root: Path, episodes: list[Episode], per_file: int = 2, step: dict = STEP) -> Path:
    """A version folder with as many files as it takes."""
    root.mkdir(parents=True)
    parts = [episodes[i : i + per_file] for i in range(0, len(episodes), per_file)]
    for number, part in enumerate(parts):
        path = root / f"toy_robot-train.tfrecord-{number:05d}-of-{len(parts):05d}"
        write_records(path, [record(episode) for episode in part])
    lengths = [str(len(part)) for part in parts]
    info = {"name": "toy_robot", "version": "1.0.0", "fileFormat": "tfrecord"}
    (root / "dataset_info.json").write_text(json.dumps(info | {"splits": [{"name": "train", "shardLengths": lengths}]}))
    steps = {
        "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
        "sequence": {"feature": step},
    }
    (root / "features.json").write_text(json.dumps(group(steps=steps, episode_metadata=group(file_path={"text": {}}))))
    return root
