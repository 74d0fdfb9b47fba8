"""One stream of a media file as frames in presentation order, with the damaged parts marked.

:class:`VideoTrack` and :class:`AudioTrack` open the file for one stream each. Picture and sound are then read
independently, and a badly interleaved file takes no memory. Decoders run single-threaded, so that their output, errors
included, is the same in every process. libav's own log is off (PyAV's default, set explicitly here), because every
fault is reported as an error code.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.downmix import custom_channels
from mmldm_scale.media.encryption import is_encrypted_packet
from mmldm_scale.media.frame_times import COUNTED, FrameTimes

av.logging.set_level(None)

# The formats that are opened. Others are rare, or are lists of further files, which must not be opened.
FORMATS = (
    "3gp,aac,ac3,aiff,amr,ape,asf,au,avi,caf,dhav,dts,dv,eac3,flac,flv,gif,gxf,h264,hevc,ivf,kux,m4v,matroska,mov,mp3,"
    "mp4,mpeg,mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,pva,rm,tta,ty,vc1,w64,wav,webm,wtv,wv,yuv4mpegpipe"
)
MAX_PIXELS = 8192 * 8192  # pixels of a picture; a larger one could fill the memory
RATES = range(1_000, 768_001)  # Hz, sample rates; with others the header is wrong, and resampling fails
IO_TIMEOUT = 30.0  # seconds that opening a file or reading a packet may take
PREROLL = 1.0  # seconds decoded before a seek's target: sound codecs need some, and seeking is by decoding time
SEEK_DISTANCE = 10.0  # seconds; a longer gap is skipped by seeking instead of decoding
END_TOLERANCE = 0.1  # seconds that a window may exceed the end: MP3 sound in MP4 ends up to 0.08 s before its picture

MAX_GAP = 10.0  # seconds without a frame in a format whose clock may jump; ffmpeg, too, takes more for a jump
FAULT_DELAY = 0.002  # seconds from the last good frame's time to the begin of a fault, so that the frame is still used

FrameT = TypeVar("FrameT", VideoFrame, AudioFrame)


@dataclass(frozen=True)
class Entry(Generic[FrameT]):
    """What a stream presents from ``time`` (seconds, container clock) until the next entry: a frame or a fault."""

    time: float
    content: FrameT | MediaError
    pixel_aspect: Fraction | None = None  # of a picture: width of a pixel divided by its height; None: 1


def open_container(path: Path) -> InputContainer:
    """Open ``path`` as a local file, whatever its name looks like.

    Raises:
        MediaError: missing_file, empty_file, unreadable, not_media.
    """
    try:
        if not path.exists():
            raise MediaError("missing_file", f"{path}: no such file")
        if not path.is_file():
            raise MediaError("unreadable", f"{path}: not a regular file")  # opening a pipe would wait for its writer
        if path.stat().st_size == 0:
            raise MediaError("empty_file", f"{path}: 0 bytes")
    except OSError as error:
        raise MediaError("unreadable", f"{path}: {error.strerror}") from None
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        return av.open(f"file:{path}", options=options, metadata_errors="replace", timeout=IO_TIMEOUT)
    except PermissionError as error:
        raise MediaError("unreadable", f"{path}: {error.strerror}") from None
    except (av.FFmpegError, OSError) as error:
        raise MediaError("not_media", f"{path}: {error.strerror or error}") from None


@overload
def find_stream(container: InputContainer, kind: Literal["video"], number: int | None = None) -> VideoStream | None: ...
@overload
def find_stream(container: InputContainer, kind: Literal["audio"], number: int | None = None) -> AudioStream | None: ...
def find_stream(container: InputContainer, kind: Literal["video", "audio"], number: int | None = None) -> Stream | None:
    """Return the stream of this kind that a player would choose, cover art excluded; None if there is none.

    Args:
        number: take this one of them, from 0, instead.

    Raises:
        MediaError: no_such_stream: there are streams of this kind, but not so many.
    """
    candidates = [s for s in container.streams if s.type == kind and not s.disposition & Disposition.attached_pic]
    if number is not None and candidates:
        if not 0 <= number < len(candidates):
            text = f"there is no {kind} stream {number}: the file has {len(candidates)}, counted from 0"
            raise MediaError("no_such_stream", f"{container.name.removeprefix('file:')}: {text}")
        return candidates[number]
    best = container.streams.best(kind)
    return best if best in candidates else next(iter(candidates), None)


def clock_may_jump(container: InputContainer) -> bool:
    """Return whether timestamps may start anew within a file of this format, as in transport streams."""
    return Flags.ts_discont in Flags(container.format.flags)


def read_packets(container: InputContainer, stream: Stream) -> "Iterator[av.Packet[Any]]":
    """Yield the packets of ``stream`` and the empty one at the end that flushes its decoder."""
    with contextlib.suppress(IndexError):  # PyAV raises it at the end if new streams appeared in the file
        yield from container.demux(stream)


def to_seconds(ticks: int, time_base: Fraction | None) -> float:
    """Return a timestamp of ``ticks`` units of ``time_base`` in seconds."""
    if time_base is None:
        raise ValueError("a timestamp without a time base")
    return float(ticks * time_base)


class _Track(Generic[FrameT]):
    """A stream of a file, decoded forward from any time.

    Raises MediaError when made: see :func:`open_container`; no_video_stream, no_audio_stream, unsupported_codec,
    too_large.
    """

    kind: ClassVar[Literal["video", "audio"]]
    stream: Stream

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _find_stream(self) -> Stream | None:
        """Return the stream of this kind; raise MediaError if it cannot be decoded."""
        raise NotImplementedError

    def _open(self) -> None:
        self.container = open_container(self.path)
        stream = self._find_stream()
        if stream is None:
            raise MediaError(f"no_{self.kind}_stream", f"{self.path}: {self.container.format.name}")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "err_detect": "explode",  # without it HEVC conceals damage silently
            "max_pixels": str(MAX_PIXELS),  # for streams whose size changes
        }
        self.stream = stream
        self._fresh = True  # nothing was read from it yet

    def frame_seconds(self, frame: FrameT) -> float:
        """Return how long ``frame`` lasts, in seconds."""
        raise NotImplementedError

    def pixel_aspect(self) -> Fraction | None:
        """Return the pixel shape of the picture that is decoded now; None: square pixels, or a sound."""
        return None

    def close(self) -> None:
        """Close the file; the track cannot be used afterwards."""
        self.container.close()

    def entries(self, time: float) -> Iterator[Entry[FrameT]]:
        """Yield what the stream presents, in order, from ``time`` (seconds, container clock) or somewhat earlier.

        Only one such iterator can be in use at a time. If the file cannot seek to a frame at or before ``time``, it is
        decoded from its beginning.
        """
        if time - PREROLL > self._start() and self.container.format.name not in COUNTED:
            entries = self._seek(time)
            if entries is not None:
                return entries
        if not self._fresh:
            self.close()
            self._open()
        return self._decode()

    def _start(self) -> float:
        return to_seconds(self.stream.start_time or 0, self.stream.time_base)

    def _seek(self, time: float) -> Iterator[Entry[FrameT]] | None:
        """Return the entries from a key frame at or before ``time`` on, or None if seeking does not reach one."""
        self._fresh = False
        try:
            offset = int((time - PREROLL) / to_seconds(1, self.stream.time_base))
            self.container.seek(offset, stream=self.stream)
        except av.FFmpegError:
            return None  # decoding from the beginning shows whether the file is damaged or only not seekable
        entries = self._decode()
        first = next(entries, None)
        if first is None or first.time > time or isinstance(first.content, MediaError):
            return None
        return chain([first], entries)

    def _decode(self) -> Iterator[Entry[FrameT]]:
        self._fresh = False
        last = float("-inf")
        times = FrameTimes(self.stream, self.container.format.name, self.frame_seconds)
        jumps = clock_may_jump(self.container)
        pixel_aspect = self.pixel_aspect()
        fault: MediaError | None = None
        trusted_after = float("-inf")  # a picture that depends on a damaged one is damaged too: wait for a key frame
        for packet, frames in self._packets():
            if isinstance(frames, MediaError):
                fault = frames
                trusted_after = last
                if packet is not None and packet.pts is not None:
                    trusted_after = to_seconds(packet.pts, packet.time_base)
                yield Entry(last + FAULT_DELAY, fault)
                continue
            for frame in frames:
                time = times.of(frame)
                if isinstance(frame, VideoFrame) and frame.key_frame:
                    pixel_aspect = self.pixel_aspect()
                if time < last:
                    continue  # time runs backwards: each moment is shown once
                if jumps and last > float("-inf") and time > last + MAX_GAP:
                    text = f"{self.path}: {self.kind} stream: the clock jumps from {last:.3f} to {time:.3f} s"
                    yield Entry(last + FAULT_DELAY, MediaError("clock_jumps", text))
                last = time
                if isinstance(frame, AudioFrame) or (frame.key_frame and time > trusted_after):
                    fault = None
                if fault is None:
                    yield Entry(time, frame, pixel_aspect)

    def _packets(self) -> "Iterator[tuple[av.Packet[Any] | None, list[FrameT] | MediaError]]":
        """Yield each packet with its frames, or with the fault that it is."""
        packets = read_packets(self.container, self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                yield None, self._fault(error)
                return
            if is_encrypted_packet(packet):  # some begin in the clear
                yield packet, MediaError("encrypted", f"{self.path}: the {self.kind} stream needs a key")
                continue
            try:
                frames: list[Any] = packet.decode()
            except av.EOFError:
                return
            except (av.FFmpegError, OSError) as error:
                yield packet, self._fault(error)
                continue
            corrupt = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
            yield packet, self._fault("flagged as corrupt") if corrupt else frames

    def _fault(self, error: object) -> MediaError:
        text = getattr(error, "strerror", None) or str(error)
        return MediaError("corrupt", f"{self.path}: {self.kind} stream: {text}")


class VideoTrack(_Track[VideoFrame]):
    """The video stream of a file."""

    kind = "video"
    stream: VideoStream

    def _open(self) -> None:
        super()._open()
        stated, coded = self.stream.sample_aspect_ratio, self.stream.codec_context.sample_aspect_ratio
        self._container_aspect = stated if stated != coded else None  # which outweighs what the codec says

    def pixel_aspect(self) -> Fraction | None:
        return self._container_aspect or self.stream.codec_context.sample_aspect_ratio

    def frame_seconds(self, frame: VideoFrame) -> float:
        if frame.duration:
            return to_seconds(frame.duration, frame.time_base)
        return 1 / float(self.stream.average_rate or 25)

    def _find_stream(self) -> VideoStream | None:
        stream = find_stream(self.container, "video")
        if stream is not None:
            if stream.codec_context is None:
                raise MediaError("unsupported_codec", f"{self.path}: video stream")
            if stream.width * stream.height > MAX_PIXELS:
                raise MediaError("too_large", f"{self.path}: {stream.width}×{stream.height} pixels")
        return stream


class AudioTrack(_Track[AudioFrame]):
    """The audio stream of a file."""

    kind = "audio"
    stream: AudioStream
    rate: int  # Hz, as the file begins
    custom_order: bool  # the order of the channels is not libav's own

    def __init__(self, path: Path, number: int | None = None) -> None:
        """Open ``path`` for the sound track ``number``, from 0; None: for the one that a player would choose."""
        self._number = number
        super().__init__(path)

    def _open(self) -> None:
        super()._open()
        self.rate = self.stream.sample_rate
        context = self.stream.codec_context
        channels = custom_channels(context)
        self.custom_order = channels > 0
        if self.custom_order:
            context.options = {**context.options, "ch_layout": f"{channels}C"}  # so many, without an order

    def frame_seconds(self, frame: AudioFrame) -> float:
        return frame.samples / frame.sample_rate

    def _find_stream(self) -> AudioStream | None:
        stream = find_stream(self.container, "audio", self._number)
        if stream is not None and (stream.codec_context is None or stream.sample_rate not in RATES):
            raise MediaError("unsupported_codec", f"{self.path}: audio stream")
        return stream
