"""Whole files, at their own size and rates: ``read_whole(path)`` returns all frames and all sound of a short file.

Time zero is the beginning of the picture, or of the sound where there is no picture. A video of changing frame rate is
read at its mean rate: frame i is what it shows in the middle of its time, from i / rate to (i + 1) / rate. Sound that
begins before the picture is cut there, later sound is preceded by silence, so that both stay synchronous.
"""

from contextlib import closing
from pathlib import Path

import numpy as np

from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip, MediaError
from mmldm_scale.media.clock_jumps import check_clock
from mmldm_scale.media.decode import MIN_BYTES, refuse_encrypted, stream_span
from mmldm_scale.media.pictures import whole_pictures
from mmldm_scale.media.sounds import whole_sound
from mmldm_scale.media.track import AudioTrack, VideoTrack, find_stream, open_container

MOST_SECONDS = 1800.0  # of a file that is read whole
MOST_BYTES = 4 << 30  # that all its frames may take
FRAME_RATES = (0.001, 1000.0)  # frames per second, the lowest and the highest


def read_whole(path: Path, sound: Path | None = None) -> tuple[Clip, float, int]:
    """Return the clip that is the whole file, its frame rate in frames per second and its sample rate in Hz.

    A rate is 0 if there is no such part.

    Args:
        path: a video, with sound or without, or a sound file.
        sound: a file whose sound replaces that of ``path``; both begin at the same moment.

    Raises:
        MediaError: the file, or part of it, is damaged, no medium, encrypted or too large: missing_file, empty_file,
            unreadable, not_media, no_audio_stream (``sound``), unsupported_codec, unsupported_colours,
            unsupported_sound, encrypted, clock_jumps, too_large, too_long, truncated or corrupt.
    """
    for file in {path, sound or path}:
        check_clock(file)
    with open_container(path) as container:
        has_picture, has_sound = (find_stream(container, kind) is not None for kind in ("video", "audio"))
    if not has_picture and not has_sound:
        raise MediaError("not_media", f"{path}: has neither picture nor sound")
    frames, waveform, frame_rate, sample_rate = NO_FRAMES, NO_SOUND, 0.0, 0
    zero: float | None = None
    if has_picture:
        frames, frame_rate, zero = _read_pictures(path)
    if has_sound or sound is not None:
        waveform, sample_rate = _read_sound(sound or path, None if sound else zero)
    return Clip(frames, waveform), frame_rate, sample_rate


def _read_pictures(path: Path) -> tuple[np.ndarray, float, float]:
    """Return all frames (F, H, W, 3), their rate and when they begin, in seconds of the container's clock."""
    with closing(VideoTrack(path)) as track:
        stream = track.stream
        refuse_encrypted(path, stream)
        start, end = stream_span(path, stream)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        _check_length(path, end - start)
        if not FRAME_RATES[0] <= rate <= FRAME_RATES[1]:
            raise MediaError("corrupt", f"{path}: states {rate:g} frames per second")
        count = max(1, round((end - start) * rate))
        size = count * stream.height * stream.width * 3
        if size > MOST_BYTES:
            shape = f"{count:,} frames of {stream.width}×{stream.height} pixels"
            raise MediaError("too_large", f"{path}: {shape} take {size:,} bytes; at most {MOST_BYTES:,} are read whole")
    with closing(VideoTrack(path)) as track:  # anew, since a packet was read
        return whole_pictures(track, start, count, rate), rate, start


def _read_sound(path: Path, zero: float | None) -> tuple[np.ndarray, int]:
    """Return the sound (N,) from ``zero`` (seconds of the container's clock; None: its own beginning) and its rate."""
    with closing(AudioTrack(path)) as track:
        refuse_encrypted(path, track.stream)
        start, end = stream_span(path, track.stream)
        _check_length(path, end - start)
    with closing(AudioTrack(path)) as track:  # anew, since a packet was read
        if zero is None:
            first = next(track.entries(start), None)  # its stated start would count what encoders put before the sound
            if first is None:
                raise MediaError("corrupt", f"{path}: no sound can be decoded at its beginning")
            if isinstance(first.content, MediaError):
                raise first.content
            zero = first.time
        if end <= zero:
            raise MediaError("truncated", f"{path}: the sound ends before the picture begins")
        return whole_sound(track, zero, end - zero), track.rate


def _check_length(path: Path, seconds: float) -> None:
    if seconds > MOST_SECONDS:
        raise MediaError("too_long", f"{path}: takes {seconds:.0f} s; at most {MOST_SECONDS:.0f} s are read whole")
    size = path.stat().st_size
    if seconds * MIN_BYTES > size:
        raise MediaError("too_long", f"{path}: claims {seconds:.0f} s in {size} bytes")
