"""One stream of a media file as frames in presentation order, with what is damaged in between.

:class:`Track` opens the file for one stream alone, so that picture and sound are pulled forward independently and a
badly interleaved file costs no memory. Decoders run single-threaded: their output, errors included, is then the same
in every process. libav's own log stays off (PyAV's default, stated here): each fault reaches us as an error code.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame

from mmldm_scale.media.clip import MediaError

av.logging.set_level(None)

# The formats that are opened. The others are exotic, or lists of further files: reading one must not reach those.
FORMATS = (
    "3gp,aac,ac3,aiff,asf,avi,caf,dv,eac3,flac,flv,h264,hevc,m4v,matroska,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,"
    "obu,ogg,rm,w64,wav,webm"
)
MAX_PIXELS = 8192 * 8192  # of one picture: beyond it a file is refused instead of filling the memory
RATES = range(1_000, 768_001)  # Hz, of sound: beyond them a header is wrong, and resampling fails or fills the memory
IO_TIMEOUT = 30.0  # seconds that opening a file or reading a packet may take
PREROLL = 1.0  # seconds decoded ahead of a seek's target: sound codecs need some, and seeking is by decoding time

COUNTED = ("avi",)  # formats whose timestamps are counted packets, which come out wrong behind a seek
FAULT_DELAY = 0.002  # seconds after the last good frame's time from which a fault holds, so that frame still counts


@dataclass(frozen=True)
class Entry:
    """What a stream presents from ``time`` (seconds, container clock) until the next entry: a frame or a fault."""

    time: float
    content: VideoFrame | AudioFrame | MediaError


def open_container(path: Path) -> InputContainer:
    """Open ``path`` for reading, as a local file whatever its name looks like; raise MediaError if it is no media."""
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


def find_stream(container: InputContainer, kind: Literal["video", "audio"]) -> Stream | None:
    """Return the stream of this kind that a player would choose; cover art is no video."""
    candidates = [s for s in container.streams if s.type == kind and not s.disposition & Disposition.attached_pic]
    best = container.streams.best(kind)
    return best if best in candidates else next(iter(candidates), None)


def read_packets(container: InputContainer, stream: Stream) -> Iterator[av.Packet]:
    """Yield the packets of ``stream`` and the empty one at the end that flushes its decoder."""
    with contextlib.suppress(IndexError):  # PyAV ends so where other streams turned up on the way
        yield from container.demux(stream)


class Track:
    """The video or audio stream of a file, decoded forward from any time.

    Raises MediaError when made: see :func:`open_container`; no_video_stream, no_audio_stream, unsupported_codec,
    too_large.
    """

    def __init__(self, path: Path, kind: Literal["video", "audio"]) -> None:
        self.path = path
        self.kind = kind
        self._open()

    def _open(self) -> None:
        self.container = open_container(self.path)
        stream = find_stream(self.container, self.kind)
        if stream is None:
            raise MediaError(f"no_{self.kind}_stream", f"{self.path}: {self.container.format.name}")
        if stream.codec_context is None or (self.kind == "audio" and stream.sample_rate not in RATES):
            raise MediaError("unsupported_codec", f"{self.path}: {self.kind} stream")
        if self.kind == "video" and stream.width * stream.height > MAX_PIXELS:
            raise MediaError("too_large", f"{self.path}: {stream.width}×{stream.height} pixels")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "err_detect": "explode",  # HEVC conceals damage without a word otherwise
            "max_pixels": str(MAX_PIXELS),  # where the size changes on the way
        }
        self.stream = stream
        self._fresh = True  # nothing was read from it yet

    def close(self) -> None:
        """Close the file; the track cannot be used afterwards."""
        self.container.close()

    def frame_seconds(self, frame: VideoFrame) -> float:
        """Return how long ``frame`` is shown, in seconds."""
        if frame.duration:
            return float(frame.duration * frame.time_base)
        return 1 / float(self.stream.average_rate or 25)

    def entries(self, time: float) -> Iterator[Entry]:
        """Yield what the stream presents, in order, from ``time`` (seconds, container clock) or somewhat earlier on.

        Only one such iterator can be in use at a time. Where the file cannot seek to a frame at or before ``time``,
        it is decoded from its beginning.
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
        return float((self.stream.start_time or 0) * self.stream.time_base)

    def _seek(self, time: float) -> Iterator[Entry] | None:
        """Return the entries from a key frame at or before ``time`` on, or None where seeking does not get there."""
        self._fresh = False
        try:
            self.container.seek(int((time - PREROLL) / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            return None  # decoding from the beginning tells whether the file is damaged or just not seekable
        entries = self._decode()
        first = next(entries, None)
        if first is None or first.time > time or isinstance(first.content, MediaError):
            return None
        return chain([first], entries)

    def _decode(self) -> Iterator[Entry]:
        self._fresh = False
        last = float("-inf")
        fault: MediaError | None = None
        trusted_after = float("-inf")  # a picture that builds on a damaged one is no better: wait for a key frame
        for packet, result in self._packets():
            if isinstance(result, MediaError):
                fault = result
                trusted_after = last if packet is None or packet.pts is None else float(packet.pts * packet.time_base)
                yield Entry(last + FAULT_DELAY, fault)
                continue
            for frame in result:
                time = last if frame.pts is None else float(frame.pts * frame.time_base)
                if time < last:
                    continue  # time runs backwards: what comes twice is shown once
                last = time
                if self.kind == "audio" or (frame.key_frame and time > trusted_after):
                    fault = None
                if fault is None:
                    yield Entry(time, frame)

    def _packets(self) -> Iterator[tuple[av.Packet | None, list | MediaError]]:
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
            try:
                frames = packet.decode()
            except av.EOFError:
                return
            except (av.FFmpegError, OSError) as error:
                yield packet, self._fault(error)
                continue
            bad = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
            yield packet, self._fault("flagged as corrupt") if bad else frames

    def _fault(self, error: object) -> MediaError:
        text = getattr(error, "strerror", None) or str(error)
        return MediaError("corrupt", f"{self.path}: {self.kind} stream: {text}")
