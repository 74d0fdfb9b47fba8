"""Sounds of windows: the waveforms of given times, placed by their timestamps, with silence in the gaps.

:func:`window_sounds` yields the waveform of each window, as one channel at the rate of the media configuration.
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
from mmldm_scale.media.track import END_TOLERANCE, SEEK_DISTANCE, AudioTrack

JITTER = 0.02  # seconds that timestamps may deviate from the sound so far before it is a gap or an overlap
MARGIN = 0.01  # seconds of sound on both sides of a window that are given to the resampling filter


@dataclass(frozen=True)
class _Piece:
    """Samples [first, end) at the source's rate, counted from time zero; a MediaError stands for lost sound."""

    first: int
    end: int
    content: np.ndarray | MediaError


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
    rate = track.stream.sample_rate
    margin, tolerance = round(MARGIN * rate), round(END_TOLERANCE * rate)
    buffered: deque[_Piece] = deque()
    reached: int | None = None  # end of the sound decoded so far; None before the first window
    for start in starts:
        first, end = int(start * rate), int(np.ceil((start + media.seconds) * rate))
        if reached is None or first - reached > SEEK_DISTANCE * rate:
            pieces, buffered, reached = _pieces(track, zero + start, zero), deque(), 0
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
            line = _join(buffered, first - margin, end + margin)
            yield _resampled(line, rate, media, start - (first - margin) / rate)


def _pieces(track: AudioTrack, time: float, zero: float) -> Iterator[_Piece]:
    """Yield the sound from ``time`` (seconds, container clock) or earlier on, without overlaps, gaps left out."""
    rate = track.stream.sample_rate
    mix = _Mixer(track)
    end: int | None = None  # of the sound so far
    fault: MediaError | None = None
    for entry in track.entries(time):
        samples = entry.content if isinstance(entry.content, MediaError) else mix(entry.content)
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
        yield _Piece(first, end, samples)
    if fault is not None:
        yield _Piece(end or 0, 1 << 62, fault)


class _Mixer:
    """Mixes frames down to one channel, which is never louder than the loudest of theirs."""

    def __init__(self, track: AudioTrack) -> None:
        self.track = track
        self.kind: tuple[str, str] | None = None  # sample format and layout of the previous frame

    def __call__(self, frame: AudioFrame) -> np.ndarray | MediaError:
        """Return the (N,) float32 mix of ``frame``, or why there is none."""
        rate = self.track.stream.sample_rate
        if frame.sample_rate != rate:
            text = f"{self.track.path}: the sample rate changes from {rate} to {frame.sample_rate} Hz"
            return MediaError("corrupt", text)
        if self.kind != (frame.format.name, frame.layout.name):
            self.kind = (frame.format.name, frame.layout.name)
            self.mixer = AudioResampler(format="fltp", layout="mono", rate=rate, options={"rematrix_maxval": "1"})
        try:
            return np.concatenate([part.to_ndarray()[0] for part in self.mixer.resample(frame)])
        except (av.FFmpegError, ValueError) as error:
            return MediaError("corrupt", f"{self.track.path}: the sound cannot be mixed down: {error}")


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
