"""Decoding: media files into clips, picture and sound cut by presentation time on one clock.

``probe(path)`` returns what a file contains; ``read_clips(path, starts, media)`` yields one clip for each start;
``read_sound(path, media)`` returns the sound at the beginning of a file that may have no picture. Time
zero, from which ``starts`` and ``MediaInfo.seconds`` count, is the first moment that has both picture and sound, so
that both cover [0, seconds] whatever the offset of the streams; ``MediaInfo.start`` is that moment on the container's
own clock. If the sound is in a separate file (``sound=``), both files begin at the same moment. Nothing is guessed: a
window that needs damaged data yields a MediaError instead of a clip, and other windows are not affected.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.clock_jumps import check_clock
from mmldm_scale.media.encryption import is_encrypted, is_encrypted_packet
from mmldm_scale.media.pictures import window_pictures
from mmldm_scale.media.sounds import window_sounds
from mmldm_scale.media.track import (
    END_TOLERANCE,
    AudioTrack,
    VideoTrack,
    find_stream,
    open_container,
    read_packets,
    to_seconds,
)

_RARE = (
    ".3g2 .3gp .asf .divx .dv .f4v .flv .gxf .m1v .m2ts .m2v .mpe .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .wmv"
)
_SOUND = (
    ".aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .dts .eac3 .flac .m4a .m4b .mka .mp2 .mp3 .mpga .oga .ogg .opus "
    ".snd .spx .tta .w64 .wav .wave .weba .wma .wv"
)
SUFFIXES = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", *_RARE.split()])  # of videos
SOUND_SUFFIXES = frozenset(_SOUND.split())  # of files that are sound alone
MAX_SECONDS = 48 * 3600.0  # longest duration; a file that claims more is refused
MIN_BYTES = 16.0  # bytes per second that a file claims, at least; one black picture a second and silence take 300


@dataclass(frozen=True)
class MediaInfo:
    """Contents of a file according to its header or, if that has no times, its packets."""

    seconds: float  # duration of picture and sound together (of the picture, if there is no sound)
    start: float  # time zero of ``read_clips`` on the container's clock, in seconds
    sound_start: float  # the same moment on the clock of the sound's container, which may be a separate file
    width: int  # pixels, as coded
    height: int  # pixels, as coded
    fps: float  # mean frames per second
    has_audio: bool
    sample_rate: int  # Hz; 0 if there is no sound, or no decoder for it


def probe(path: Path, sound: Path | None = None, audio_stream: int | None = None) -> MediaInfo:
    """Return the contents of ``path`` without decoding it; the sound is that of the file ``sound``, if given.

    ``audio_stream`` is the number of the sound track, from 0; None: the one that a player would choose.

    Raises:
        MediaError: missing_file, empty_file, unreadable, not_media, no_video_stream, unsupported_codec, too_large,
            too_long, encrypted, clock_jumps, corrupt, no_such_stream (``audio_stream``); no_audio_stream only for
            ``sound``: a video without sound is no error here.
    """
    for file in {Path(path), Path(sound or path)}:
        check_clock(file)
    return _probe(Path(path), sound, audio_stream)


def _probe(path: Path, sound: Path | None, audio_stream: int | None) -> MediaInfo:
    """Return the contents of ``path`` as far as the clock does not jump."""
    with ExitStack() as tracks:
        track = tracks.enter_context(closing(VideoTrack(path)))
        video, audio = track.stream, find_stream(track.container, "audio", None if sound else audio_stream)
        if sound is not None:
            audio = tracks.enter_context(closing(AudioTrack(sound, audio_stream))).stream
        refuse_encrypted(path, video, audio)
        (start, end), offset = stream_span(path, video), 0.0
        if audio is not None:
            first, last = stream_span(sound or path, audio)
            offset = 0.0 if sound is None else first - start  # from the picture's clock to the sound's
            start, end = max(start, first - offset), min(end, last - offset)
        if end - start > MAX_SECONDS:
            raise MediaError("too_long", f"{path}: claims {end - start:.0f} s; at most {MAX_SECONDS:.0f} s are read")
        size = path.stat().st_size
        if (end - start) * MIN_BYTES > size:
            raise MediaError("too_long", f"{path}: claims {end - start:.0f} s in {size} bytes")
        return MediaInfo(
            seconds=max(0.0, end - start),
            start=start,
            sound_start=start + offset,
            width=video.width,
            height=video.height,
            fps=float(video.average_rate or 0),
            has_audio=audio is not None,
            sample_rate=getattr(audio, "sample_rate", 0),  # without a decoder the stream has no such attribute
        )


def read_clips(
    path: Path,
    starts: Sequence[float],
    media: MediaConfig,
    need_sound: bool = True,
    sound: Path | None = None,
    audio_stream: int | None = None,
) -> Iterator[Clip | MediaError]:
    """Yield the clip that begins at each of ``starts``, or the reason why that window gives none.

    Args:
        path: a file that libav can read.
        starts: seconds from time zero (see the module's text), ascending, not negative.
        media: number, rate and size of frames; sample rate and length of the waveform.
        need_sound: raise no_audio_stream for a file without sound; if False, its clips are silent.
        sound: a file whose sound replaces that of ``path``; both begin at the same moment.
        audio_stream: as in :func:`probe`.

    Yields:
        Clip: frames (media.frames, media.size, media.size, 3), waveform (media.audio_samples,).
        MediaError: too_short, truncated, corrupt, clock_jumps, unsupported_colours or unsupported_sound.

    Both streams are decoded once, even if windows overlap, and one window's data is kept in memory. A clip does not
    depend on the other windows that are read, with one exception: after a seek (starts beyond the first seconds), a
    sound codec that substitutes noise may give other noise.

    Raises:
        MediaError: the whole file gives no clip: as :func:`probe`, and no_audio_stream if ``need_sound``. Where the
            clock jumps only those windows are lost that lie there.
    """
    path = Path(path)
    info = _probe(path, sound, audio_stream)
    if list(starts) != sorted(starts) or any(start < 0 for start in starts):
        raise ValueError("starts must be ascending and not negative")
    if need_sound and not info.has_audio:
        raise MediaError("no_audio_stream", f"{path}: has a picture but no sound")
    last = info.seconds - media.seconds + END_TOLERANCE
    inside = [start for start in starts if start <= last]
    with ExitStack() as tracks:
        video = tracks.enter_context(closing(VideoTrack(path)))
        pictures = window_pictures(video, inside, info.start, media)
        sounds: Iterator[np.ndarray | MediaError] = repeat(np.zeros(media.audio_samples, np.float32))
        if info.has_audio:
            audio = tracks.enter_context(closing(AudioTrack(sound or path, audio_stream)))
            sounds = window_sounds(audio, inside, info.sound_start, media)
        for start in starts:
            if start > last:
                text = f"{path}: a clip of {media.seconds:g} s from {start:g} s on needs more than {info.seconds:.3f} s"
                yield MediaError("too_short", text)
                continue
            frames, waveform = next(pictures), next(sounds)
            if isinstance(frames, MediaError):
                yield frames
            elif isinstance(waveform, MediaError):
                yield waveform
            else:
                yield Clip(frames, waveform)


def has_picture(path: Path) -> bool:
    """Return whether ``path`` is a video; cover art in a sound file is no picture of one.

    Raises:
        MediaError: missing_file, empty_file, unreadable, not_media.
    """
    with open_container(Path(path)) as container:
        return find_stream(container, "video") is not None


def read_sound(path: Path, media: MediaConfig) -> np.ndarray:
    """Return the sound at the beginning of ``path``, which may have no picture: (media.audio_samples,) float32, mono.

    Raises:
        MediaError: as :func:`read_sounds` raises and yields.
    """
    waveform = next(read_sounds(path, [0.0], media))
    if isinstance(waveform, MediaError):
        raise waveform
    return waveform


def read_sounds(path: Path, starts: Sequence[float], media: MediaConfig) -> Iterator[np.ndarray | MediaError]:
    """Yield the sound from each of ``starts`` on, (media.audio_samples,) float32, mono, or why there is none.

    Args:
        path: a file that may have no picture.
        starts: seconds from the beginning of the sound, ascending, not negative.

    Yields:
        MediaError: too_short, truncated, corrupt, clock_jumps or unsupported_sound.

    Raises:
        MediaError: missing_file, empty_file, unreadable, not_media, no_audio_stream, unsupported_codec, encrypted or
            corrupt.
    """
    path = Path(path)
    first, end = _sound_span(path)
    with closing(AudioTrack(path)) as track:
        inside = [start for start in starts if start <= end - first - media.seconds + END_TOLERANCE]
        sounds = window_sounds(track, inside, first, media)
        for start in starts:
            if start in inside:
                yield next(sounds)
                continue
            where = f" from {start:g} s on" if start else ""
            text = f"{path}: {media.seconds:g} s of sound{where} are needed; it has {end - first:.3f} s"
            yield MediaError("too_short", text)


def sound_seconds(path: Path) -> float:
    """Return the length of the sound in ``path`` in seconds; raise MediaError as :func:`read_sounds` raises it."""
    first, end = _sound_span(Path(path))
    return end - first


def _sound_span(path: Path) -> tuple[float, float]:
    """Return when the sound that can be decoded begins and when it ends, in seconds of the container's clock."""
    with closing(AudioTrack(path)) as track:
        refuse_encrypted(path, track.stream)
    with closing(AudioTrack(path)) as track:  # anew, since a packet was read
        first = next(track.entries(0.0), None)
        if first is None:
            raise MediaError("corrupt", f"{path}: no sound can be decoded at its beginning")
        if isinstance(first.content, MediaError):
            raise first.content
        _, end = stream_span(path, track.stream)
        return first.time, end  # the stream's own start would count what encoders put before the sound


def refuse_encrypted(path: Path, *streams: Stream | None) -> None:
    """Raise MediaError if one of ``streams``, by its header or by its first packet, is encrypted."""
    for stream in filter(None, streams):
        assert isinstance(stream.container, InputContainer)
        encrypted = is_encrypted(stream)
        with suppress(av.FFmpegError):  # decoding will say what is wrong
            packet = next(read_packets(stream.container, stream), None)
            encrypted = encrypted or (packet is not None and is_encrypted_packet(packet))
        if encrypted:
            raise MediaError("encrypted", f"{path}: the {stream.type} stream needs a key")


def stream_span(path: Path, stream: Stream) -> tuple[float, float]:
    """Return when ``stream`` starts and ends, in seconds of the container's clock."""
    if stream.duration is not None and stream.start_time is not None:
        start = to_seconds(stream.start_time, stream.time_base)
        return start, start + to_seconds(stream.duration, stream.time_base)
    return _scanned_span(path, stream.index)


def _scanned_span(path: Path, index: int) -> tuple[float, float]:
    """Return start and end by reading all packets, for containers that do not state them (Matroska, raw, streamed)."""
    start, end = float("inf"), float("-inf")
    with open_container(path) as container:
        stream = container.streams[index]
        frame = 1 / stream.average_rate if stream.type == "video" and stream.average_rate else 0
        untimed = 0  # packets
        try:
            for packet in read_packets(container, stream):
                ticks = packet.dts if packet.pts is None else packet.pts
                if ticks is not None:
                    time = to_seconds(ticks, packet.time_base)
                    length = to_seconds(packet.duration, packet.time_base) if packet.duration else float(frame)
                    start, end = min(start, time), max(end, time + length)
                elif packet.size:
                    untimed += 1
        except av.FFmpegError as error:
            if end < start:
                raise MediaError("corrupt", f"{path}: {error.strerror}") from None
        if end < start:
            if frame and untimed:  # raw H.264 or HEVC
                return 0.0, untimed * float(frame)
            raise MediaError("corrupt", f"{path}: the {stream.type} stream has no timestamps")
    return start, end
