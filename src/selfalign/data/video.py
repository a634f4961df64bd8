"""Camera frames in video files: exact reading by time stamp, and writing."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """When the frames of a video are, and which can be decoded without those before: some bytes a frame."""

    pts: Int[np.ndarray, " T"]
    """Time stamps in the stream's own unit, ascending."""
    keys: Int[np.ndarray, " K"]
    """The key frames among them, as positions, ascending."""


class VideoFile:
    """One open video, read by time.

    Opening lists the time stamps of all packets (without decoding), so that a frame is found by its own time stamp
    and never by counting or by trust in a seek. For that the file is read once; give the `index` of an earlier
    opening to spare it.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not a video, or a damaged one.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path, index: FrameIndex | None = None) -> None:
        self.path, self._av = path, _pyav()
        self._to_rgb = _Converter("rgb24")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
        try:
            self._container = self._av.open(str(path))
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise ValueError("no decoder for its codec")
            self._stream.codec_context.options = {"err_detect": "explode"}  # errors, not guessed pixels
            self._stream.codec_context.thread_count = 1  # data loaders have their own processes
            self.index = self._list_frames() if index is None else index
        except (self._av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is damaged or not a video: {error}") from error
        pts = self.index.pts
        if not len(self.index.keys) or self._stream.time_base is None or (np.diff(pts) == 0).any():
            raise ValueError(f"{path} is damaged: its {len(pts)} frames have no usable time stamps")
        self.times = pts * float(self._stream.time_base)
        """Seconds of every frame, ascending."""
        self._decoded: Iterator[Any] | None = None
        self._last: tuple[int, np.ndarray] | None = None
        """Index and pixels of the frame that was decoded last."""

    def close(self) -> None:
        self._container.close()

    def frames(self, times: Float[np.ndarray, " T"], tolerance_s: float) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames at these times.

        Args:
            times: seconds from the start of the file, in any order.
            tolerance_s: how far a frame's own time may be from the wanted one, seconds.

        Raises:
            ValueError: no frame is that near, or a frame cannot be decoded.
        """
        wanted = self._locate(times, tolerance_s)
        order = np.argsort(wanted, kind="stable")  # forward through the file, whatever was asked
        first = self._frame(int(wanted[order[0]]))
        result = np.empty((len(times), *first.shape), np.uint8)
        for position in order:
            frame = self._frame(int(wanted[position]))
            if frame.shape != first.shape:
                raise ValueError(f"{self.path}: a frame is {frame.shape}, another {first.shape}")
            result[position] = frame
        return result

    def _list_frames(self) -> FrameIndex:
        packets = [(p.pts, p.is_keyframe) for p in self._container.demux(self._stream) if p.pts is not None and p.size]
        packets.sort()
        pts, is_key = np.array(packets, dtype=np.int64).reshape(-1, 2).T
        return FrameIndex(pts, np.flatnonzero(is_key))

    def _locate(self, times: np.ndarray, tolerance_s: float) -> np.ndarray:
        right = np.searchsorted(self.times, times).clip(1, max(1, len(self.times) - 1))
        right = np.minimum(right, len(self.times) - 1)
        left = np.maximum(right - 1, 0)
        nearest = np.where(times - self.times[left] <= self.times[right] - times, left, right)
        distance = np.abs(self.times[nearest] - times)
        if not (distance <= tolerance_s).all():  # NaN is too far, too
            worst = int(np.argmax(~(distance <= tolerance_s)))
            raise ValueError(
                f"{self.path} has no frame at {times[worst]:.6f} s: the nearest of {len(self.times)} is at "
                f"{self.times[nearest[worst]]:.6f} s, more than {tolerance_s:g} s away; it is cut off, or does not "
                "belong to these time stamps (a larger `tolerance_s` accepts jitter)"
            )
        return nearest

    def _frame(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        try:
            pixels = self._decode(index)
        except (self._av.FFmpegError, OSError, ValueError, EOFError) as error:
            self._decoded = self._last = None
            raise ValueError(f"{self.path}, frame {index} ({self.times[index]:.3f} s): {error}") from error
        self._last = (index, pixels)
        return pixels

    def _decode(self, index: int) -> np.ndarray:
        key = max(int(np.searchsorted(self.index.keys, index, side="right")) - 1, 0)
        if not self._leads_to(index, key):
            self._seek(key)
        # A container may land behind the wanted frame where decoding and display order differ; then from further back.
        pts = int(self.index.pts[index])
        for back in (max(key - 1, 0), 0):
            frame = self._advance(pts)
            if frame is not None:
                break
            self._seek(back)
        else:
            frame = self._advance(pts)
        if frame is None or frame.is_corrupt:
            raise ValueError("the frame is damaged")
        return self._to_rgb(frame).to_ndarray()

    def _leads_to(self, index: int, key: int) -> bool:
        """Whether decoding on from the last frame is the shortest way: no key frame is left out on it."""
        if self._decoded is None or self._last is None:
            return False
        return self.index.keys[key] - 1 <= self._last[0] < index

    def _seek(self, key: int) -> None:
        start = int(self.index.pts[self.index.keys[key]])
        self._container.seek(start, stream=self._stream, backward=True, any_frame=False)
        self._decoded = iter(self._container.decode(self._stream))

    def _advance(self, pts: int) -> Any:
        """Decodes up to the frame with this time stamp; None if it does not come."""
        assert self._decoded is not None
        for frame in self._decoded:
            if frame.pts is not None and frame.pts >= pts:
                return frame if frame.pts == pts else None
        return None


_INHERITED: list[Any] = []
"""Decoders that the parent process had open when it forked this one. Their threads are the parent's, and to free them
here would be to wait for those for ever."""


class DecoderCache:
    """The few videos that were read last stay open, and all are listed only once; safe across threads and forks."""

    def __init__(self, max_open: int = 8) -> None:
        """`max_open` bounds open files and decoders (some MB each), whatever the data set holds.

        Raises:
            ValueError: `max_open` is below 1.
        """
        if max_open < 1:
            raise ValueError(f"at least one video must be open, got max_open={max_open}")
        self.max_open = max_open
        self._reset()

    def __len__(self) -> int:
        """Videos that are open now."""
        return len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.max_open = state["max_open"]
        self._reset()

    def open(self, path: Path) -> VideoFile:
        """The video, opened or still open. Another thread's `open` may close it: to read frames use `frames`."""
        self._leave_parent()
        with self._lock:
            if path not in self._files:
                self._files[path] = self._opened(path)
                while len(self._files) > self.max_open:
                    self._files.popitem(last=False)[1].close()
            self._files.move_to_end(path)
            return self._files[path]

    def frames(self, path: Path, times: Float[np.ndarray, " T"], tolerance_s: float) -> UInt8[np.ndarray, "T H W 3"]:
        """See `VideoFile.frames`."""
        self._leave_parent()
        with self._lock:  # between opening and reading, too: no other thread may close it meanwhile
            return self.open(path).frames(times, tolerance_s)

    def _leave_parent(self) -> None:
        if os.getpid() != self._pid:  # a decoder shared with the parent process would mix both up
            _INHERITED.append(self._files)
            self._reset()

    def _opened(self, path: Path) -> VideoFile:
        if not path.is_file():
            return VideoFile(path)  # its error
        stat = path.stat()
        version = (path, stat.st_size, stat.st_mtime_ns)
        video = VideoFile(path, self._indices.get(version))
        self._indices[version] = video.index
        return video

    def _reset(self) -> None:
        self._files: OrderedDict[Path, VideoFile] = OrderedDict()
        self._indices: dict[tuple[Path, int, int], FrameIndex] = {}
        self._lock, self._pid = threading.RLock(), os.getpid()


@dataclass(frozen=True)
class VideoCodec:
    """How videos are written."""

    name: str = "libx264"
    """FFmpeg's encoder; LeRobot's own choice, `libsvtav1`, is smaller and slower."""
    pix_fmt: str = "yuv420p"
    """Halves the colour's resolution, so that height and width must be even."""
    options: Mapping[str, str] = field(default_factory=lambda: {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast"})
    """The encoder's; a key frame every two frames, as LeRobot has it, makes any frame quick to reach."""

    def check(self) -> None:
        """Asks for the encoder before anything is recorded.

        Raises:
            ValueError: PyAV does not have it.
            ImportError: PyAV is not installed.
        """
        av = _pyav()
        try:
            av.codec.Codec(self.name, "w")
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(f"PyAV has no encoder {self.name!r}: {error}") from error


class VideoWriter:
    """Writes frames of equal size at a constant rate into one .mp4.

    Raises:
        ValueError: an odd height or width, or an encoder that PyAV does not have (see `VideoCodec.check`).
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int, codec: VideoCodec | None = None) -> None:
        codec, av = codec or VideoCodec(), _pyav()
        if codec.pix_fmt == "yuv420p" and (height % 2 or width % 2):
            raise ValueError(f"video needs an even height and width, got {height} x {width}; resize, or store images")
        rate = Fraction(fps).limit_denominator(1001)
        self.path, self.frames = path, 0
        self._av, self._fps = av, fps
        path.parent.mkdir(parents=True, exist_ok=True)
        self._convert = _Converter(codec.pix_fmt)
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        stream = self._container.add_stream(codec.name, rate=rate, options=dict(codec.options))
        stream.height, stream.width, stream.pix_fmt, stream.time_base = height, width, codec.pix_fmt, 1 / rate
        stream.codec_context.time_base = 1 / rate
        self._stream = stream

    @property
    def seconds(self) -> float:
        """Length of what was written so far."""
        return self.frames / self._fps

    def write(self, frames: UInt8[np.ndarray, "T H W 3"]) -> None:
        """Appends frames, beginning with a key frame."""
        for number, pixels in enumerate(frames):
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = self._convert(frame)
            frame.pts, frame.time_base = self.frames, self._stream.codec_context.time_base
            if number == 0:
                frame.pict_type = self._av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Ends the file."""
        try:
            if self.frames:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


class _Converter:
    """Frames to one pixel format, through one conversion context: PyAV would make one for every frame."""

    def __init__(self, pix_fmt: str) -> None:
        av = _pyav()
        # Since PyAV 17 a context has a thread for every core, which small frames and many data loaders only pay for.
        self._options = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
        self._reformatter, self._pix_fmt = av.video.reformatter.VideoReformatter(), pix_fmt

    def __call__(self, frame: Any) -> Any:
        return self._reformatter.reformat(frame, format=self._pix_fmt, **self._options)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("video data sets need PyAV: pip install 'selfalign[lerobot]'") from error
    return av
