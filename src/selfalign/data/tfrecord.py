"""TFRecord files of `tf.train.Example`, read without TensorFlow.

A file is records one after another: 8 bytes length (little-endian), their checksum, the record, its checksum. Checksums
are masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord). Needs the extra `rlds`.
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

Values = list[bytes] | np.ndarray
"""What one feature of an example holds: byte strings, float32 or int64."""


class Record(NamedTuple):
    """Where a record stands in its file, and what it holds."""

    offset: int
    data: bytes


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, in order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or cut off; the message names the file and the record.
        ImportError: the extra `rlds` is not installed.
    """
    with _open(path) as file:
        offset = 0
        while (record := _read(file, path, offset)) is not None:
            yield Record(offset, record)
            offset = file.tell()


def read_record(path: Path, offset: int) -> bytes:
    """The record that begins at `offset`; errors as `read_records`."""
    with _open(path) as file:
        file.seek(offset)
        record = _read(file, path, offset)
    if record is None:
        raise ValueError(f"{path} is cut off: it has no record at byte {offset}")
    return record


def parse_example(data: bytes) -> dict[str, Values]:
    """The features of a serialised `tf.train.Example`.

    Raises:
        ValueError: it is none.
        ImportError: the extra `rlds` is not installed.
    """
    example_class, decode_error = _example_class()
    try:
        example = example_class.FromString(data)
    except decode_error as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    result: dict[str, Values] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            result[name] = list(feature.bytes_list.value)
        elif kind == "float_list":
            result[name] = np.array(feature.float_list.value, dtype=np.float32)
        elif kind == "int64_list":
            result[name] = np.array(feature.int64_list.value, dtype=np.int64)
    return result


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
    return path.open("rb")


def _read(file: BinaryIO, path: Path, offset: int) -> bytes | None:
    """The record that begins where the file stands; None at its end."""
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12 or struct.unpack("<I", head[8:])[0] != _masked_crc(head[:8]):
        raise ValueError(
            f"{path} is damaged or cut off at byte {offset}: the length of a record does not fit its checksum"
        )
    length = struct.unpack("<Q", head[:8])[0]
    body = file.read(length + 4)
    if len(body) < length + 4:
        raise ValueError(f"{path} is cut off: the record at byte {offset} has {len(body)} of {length + 4} bytes")
    if struct.unpack("<I", body[length:])[0] != _masked_crc(body[:length]):
        raise ValueError(f"{path} is damaged: the record at byte {offset} does not fit its checksum")
    return body[:length]


def _masked_crc(data: bytes) -> int:
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError("RLDS data sets need google-crc32c: pip install 'selfalign[rlds]'") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _example_class() -> tuple[Any, type[Exception]]:
    """`tf.train.Example` and what its parser raises. The message is declared here: no package but TensorFlow has it."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise ImportError("RLDS data sets need protobuf: pip install 'selfalign[rlds]'") from error
    declared: Any = descriptor_pb2  # its classes are made when it is imported, where no type checker sees them
    field = declared.FieldDescriptorProto
    file = declared.FileDescriptorProto(name="selfalign/example.proto", package="selfalign.tf", syntax="proto3")

    def add(name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        made = file.message_type.add(name=name)
        for field_name, number, kind, type_name, repeated in fields:
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            made.field.add(name=field_name, number=number, type=kind, type_name=type_name or None, label=label)
        return made

    add("BytesList", ("value", 1, field.TYPE_BYTES, "", True))
    add("FloatList", ("value", 1, field.TYPE_FLOAT, "", True))
    add("Int64List", ("value", 1, field.TYPE_INT64, "", True))
    kinds = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    feature = add(
        "Feature",
        *((name, i + 1, field.TYPE_MESSAGE, f".selfalign.tf.{kind}", False) for i, (name, kind) in enumerate(kinds)),
    )
    feature.oneof_decl.add(name="kind")
    for part in feature.field:
        part.oneof_index = 0
    features = add("Features", ("feature", 1, field.TYPE_MESSAGE, ".selfalign.tf.Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=field.TYPE_MESSAGE,
        type_name=".selfalign.tf.Feature",
        label=field.LABEL_OPTIONAL,
    )
    add("Example", ("features", 1, field.TYPE_MESSAGE, ".selfalign.tf.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("selfalign.tf.Example")
    return message_factory.GetMessageClass(found), message.DecodeError
