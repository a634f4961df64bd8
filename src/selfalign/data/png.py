"""Lossless frames as PNG bytes, fast enough for simulators that write thousands of frames a second."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP_FILTER = 2
_DAMAGE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What reading a broken image raises."""


def encode_frames(frames: UInt8[np.ndarray, "T H W 3"]) -> list[bytes]:
    """One PNG file per frame (8-bit RGB, every row stored as its difference to the row above).

    The filter runs over all frames at once and zlib looks for runs only: about 2.5 times as fast as Pillow's encoder
    at its lowest level, and no larger on rendered images.

    Raises:
        ValueError: frames that are not uint8 [T, H, W, 3].
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    count, height, width, _ = frames.shape
    rows = frames.reshape(count, height, width * 3)
    scanlines = np.empty((count, height, width * 3 + 1), dtype=np.uint8)
    scanlines[:, :, 0] = _UP_FILTER
    scanlines[:, :1, 1:] = rows[:, :1]
    np.subtract(rows[:, 1:], rows[:, :-1], out=scanlines[:, 1:, 1:])  # modulo 256, as PNG wants it

    header = _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = _chunk(b"IEND", b"")
    return [header + _chunk(b"IDAT", _deflate(frame)) + end for frame in scanlines]


def decode_frame(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of an image file in any format that Pillow reads.

    Raises:
        ValueError: the bytes are not a whole image, or (PNG) not those that were written.
    """
    try:
        if data.startswith(_SIGNATURE):
            _check_sums(data)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except _DAMAGE as error:
        raise ValueError(f"not a readable image ({len(data)} bytes): {error}") from error


def _check_sums(data: bytes) -> None:
    """Checks every chunk's CRC, which Pillow does not do for the pixels."""
    position = len(_SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"wrong checksum in its chunk {data[position + 4 : position + 8]!r}")
        position = end + 4


def _deflate(scanlines: UInt8[np.ndarray, "H row"]) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return compressor.compress(scanlines.tobytes()) + compressor.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
