"""Sounds of windows: the waveforms of given times, placed by their timestamps, with silence in the gaps.

:func:`window_sounds` yields the waveform of each window, as one channel at the rate of the media configuration. Where
the channels cancel each other in the mix, a listener still hears them, so the window has its loudest channel instead.
:func:`whole_sound` returns the whole sound at its own rate.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.downmix import MAX_CHANNELS, Downmix
from mmldm_scale.media.sample_rate import at_one_rate
from mmldm_scale.media.track import END_TOLERANCE, SEEK_DISTANCE, AudioTrack

JITTER = 0.02  # seconds that timestamps may deviate from the sound so far before it is a gap or an overlap
MARGIN = 0.01  # seconds of sound on both sides of a window that are given to the resampling filter
CANCELLED = 1e-2  # power of a mix divided by that of its loudest channel (-20 dB), below which the channels cancel


@dataclass(frozen=True)
class _Piece:
    """Samples [first, end) at the track's rate, counted from time zero; a MediaError stands for lost sound."""

    first: int
    end: int
    content: np.ndarray | MediaError  # (end - first,) float32, the mix of the channels
    frame: AudioFrame | None = None  # that the mix was made of; it may begin earlier


def window_sounds(
    track: AudioTrack, starts: list[float], zero: float, media: MediaConfig
) -> Iterator[np.ndarray | MediaError]:
    """Yield for each start the (N,) float32 waveform of its window, or why there is none.

    Args:
        track: the sound.
        starts: seconds from ``zero``, ascending.
        zero: time zero on the container's clock, in seconds.
        media: length of a window; sample rate of the waveforms.
    """
    rate = track.rate
    margin, tolerance = round(MARGIN * rate), round(END_TOLERANCE * rate)
    downmix = Downmix(track.custom_order)
    buffered: deque[_Piece] = deque()
    reached: int | None = None  # end of the sound decoded so far; None before the first window
    for start in starts:
        first, end = int(start * rate), int(np.ceil((start + media.seconds) * rate))
        if reached is None or first - reached > SEEK_DISTANCE * rate:
            pieces, buffered, reached = _pieces(track, downmix, zero + start, zero), deque(), 0
        while buffered and buffered[0].end < first - margin:
            buffered.popleft()
        while reached < end + margin and (piece := next(pieces, None)) is not None:
            buffered.append(piece)
            reached = piece.end
        needed = [piece for piece in buffered if piece.end > first and piece.first < end]
        faults = [piece.content for piece in needed if isinstance(piece.content, MediaError)]
        if faults:
            yield faults[0]
        elif reached < end - tolerance:
            text = f"{track.path}: the sound ends at {reached / rate:.3f} s; {end / rate:.3f} s is needed"
            yield MediaError("truncated", text)
        else:
            line = _audible(buffered, downmix, first - margin, end + margin)
            yield _resampled(line, rate, media, start - (first - margin) / rate)


def whole_sound(track: AudioTrack, zero: float, seconds: float) -> np.ndarray:
    """Return the sound from ``zero`` (container clock) on, at the track's rate, (N,) float32, at most ``seconds`` long.

    Raises:
        MediaError: corrupt, unsupported_sound; truncated: it ends earlier.
    """
    rate, downmix = track.rate, Downmix(track.custom_order)
    count, reached = round(seconds * rate), 0
    pieces: deque[_Piece] = deque()
    for piece in _pieces(track, downmix, zero, zero):
        if piece.first >= count:
            break
        if isinstance(piece.content, MediaError):
            raise piece.content
        pieces.append(piece)
        reached = piece.end
    if reached < count - round(END_TOLERANCE * rate):
        text = f"{track.path}: the sound ends at {reached / rate:.3f} s; its header says {seconds:.3f} s"
        raise MediaError("truncated", text)
    return np.clip(_audible(pieces, downmix, 0, min(count, reached)), -1.0, 1.0)


def _pieces(track: AudioTrack, downmix: Downmix, time: float, zero: float) -> Iterator[_Piece]:
    """Yield the sound from ``time`` (seconds, container clock) or earlier on, without overlaps, gaps left out."""
    rate = track.rate
    end: int | None = None  # of the sound so far
    fault: MediaError | None = None
    for entry in at_one_rate(track, time, JITTER):
        samples = _mix(track, downmix, entry.content)
        if isinstance(samples, MediaError):
            fault = samples
            continue
        first = round((entry.time - zero) * rate)
        if end is not None and abs(first - end) <= JITTER * rate:
            first = end
        if fault is not None:
            yield _Piece(first if end is None else end, first, fault)
            fault = None
        if end is not None and first < end:
            samples, first = samples[end - first :], end
        end = first + len(samples)
        yield _Piece(first, end, samples, entry.content if isinstance(entry.content, AudioFrame) else None)
    if fault is not None:
        yield _Piece(end or 0, 1 << 62, fault)


def _mix(track: AudioTrack, downmix: Downmix, content: AudioFrame | MediaError) -> np.ndarray | MediaError:
    """Return the (N,) float32 mix of a frame, or why there is none."""
    if isinstance(content, MediaError):
        return content
    if (count := content.layout.nb_channels) > MAX_CHANNELS:
        return MediaError("unsupported_sound", f"{track.path}: {count} channels; at most {MAX_CHANNELS} are mixed")
    try:
        return downmix.mix(content)
    except (av.FFmpegError, ValueError) as error:
        return MediaError("corrupt", f"{track.path}: the sound cannot be mixed down: {error}")


def _audible(pieces: deque[_Piece], downmix: Downmix, first: int, end: int) -> np.ndarray:
    """Return samples [first, end) as (end - first,) float32: the mix, or the loudest channel where they cancel."""
    line = _join(pieces, first, end)
    power = np.vdot(line, line) / len(line)
    several = any(piece.frame is not None and piece.frame.layout.nb_channels > 1 for piece in pieces)
    if power >= CANCELLED or not several:  # no channel has a power of more than 1
        return line
    channels = _join_channels(pieces, downmix, first, end)
    powers = [np.vdot(channel, channel) / len(line) for channel in channels]
    loudest = int(np.argmax(powers))
    return channels[loudest] if power < CANCELLED * powers[loudest] else line


def _join_channels(pieces: deque[_Piece], downmix: Downmix, first: int, end: int) -> np.ndarray:
    """Return the channels of samples [first, end) as (C, end - first) float32; C is the most that any piece has."""
    frames = [(piece, piece.frame) for piece in pieces if piece.frame is not None]
    count = max((frame.layout.nb_channels for _, frame in frames), default=1)
    channels = np.zeros((count, end - first), np.float32)
    for piece, frame in frames:
        begin, stop = max(piece.first, first), min(piece.end, end)
        if begin < stop:
            samples = downmix.split(frame)  # (C, N), of which the last are the piece's
            shift = samples.shape[1] - piece.end
            channels[: len(samples), begin - first : stop - first] = samples[:, begin + shift : stop + shift]
    return channels


def _join(pieces: deque[_Piece], first: int, end: int) -> np.ndarray:
    """Return samples [first, end) of ``pieces`` as (end - first,) float32, silent where there is no piece."""
    line = np.zeros(end - first, np.float32)
    for piece in pieces:
        begin, stop = max(piece.first, first), min(piece.end, end)
        if begin < stop and not isinstance(piece.content, MediaError):
            line[begin - first : stop - first] = piece.content[begin - piece.first : stop - piece.first]
    return line


def _resampled(line: np.ndarray, rate: int, media: MediaConfig, skip: float) -> np.ndarray:
    """Return media.audio_samples samples at media's rate, from ``skip`` seconds into ``line`` (at ``rate`` Hz) on.

    libswresample compensates its delay when flushed, so output sample k lies at k / rate: nothing is shifted.
    """
    target = media.audio.sample_rate
    resampler = AudioResampler(format="fltp", layout="mono", rate=target)
    frame = AudioFrame.from_ndarray(line[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    parts = [*resampler.resample(frame), *(resampler.resample(None) if target != rate else [])]
    sound = np.concatenate([part.to_ndarray()[0] for part in parts])
    sound = sound[round(skip * target) :][: media.audio_samples]
    sound = np.pad(sound, (0, media.audio_samples - len(sound)))
    return np.clip(sound, -1.0, 1.0)
