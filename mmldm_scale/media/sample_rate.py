"""A sound whose sample rate changes on the way, at one rate.

:func:`at_one_rate` passes frames at that rate on as they are, and resamples each stretch of others as a whole, so that
the filter has no seams. Time goes on: sample k of a stretch that begins at t lies at t + k / rate.
"""

from collections.abc import Iterator

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.track import AudioTrack, Entry


def at_one_rate(track: AudioTrack, time: float, jitter: float) -> Iterator[Entry[AudioFrame]]:
    """Yield the entries of ``track`` from ``time`` or somewhat earlier on, with all frames at ``track.rate``.

    A stretch ends where the timestamps deviate by more than ``jitter`` seconds from the sound so far.
    """
    stretch: _Stretch | None = None
    for entry in track.entries(time):
        frame = entry.content
        if stretch is not None and not stretch.continues(entry, jitter):
            yield from stretch.end()
            stretch = None
        if isinstance(frame, MediaError) or frame.sample_rate == track.rate:
            yield entry
            continue
        if stretch is None:
            stretch = _Stretch(track, entry.time, frame)
        yield from stretch.add(frame)
    if stretch is not None:
        yield from stretch.end()


class _Stretch:
    """Successive frames of the same rate, sample format and layout."""

    def __init__(self, track: AudioTrack, begin: float, frame: AudioFrame) -> None:
        self._track, self._begin, self._kind = track, begin, _kind(frame)
        self._taken = self._given = 0  # samples, at the source's rate and at the track's
        self._source_rate = frame.sample_rate
        self._resampler = AudioResampler(format="flt", rate=track.rate)

    def continues(self, entry: Entry[AudioFrame], jitter: float) -> bool:
        """Return whether ``entry`` follows on what was added so far."""
        if isinstance(entry.content, MediaError) or _kind(entry.content) != self._kind:
            return False
        return abs(entry.time - self._begin - self._taken / self._source_rate) <= jitter

    def add(self, frame: AudioFrame) -> Iterator[Entry[AudioFrame]]:
        """Yield what ``frame`` completes."""
        try:
            parts = self._resampler.resample(frame)
        except av.FFmpegError as error:
            yield Entry(
                self._time(), MediaError("corrupt", f"{self._track.path}: the sound cannot be resampled: {error}")
            )
            return
        self._taken += frame.samples
        yield from self._placed(parts)

    def end(self) -> Iterator[Entry[AudioFrame]]:
        """Yield the rest, which the filter held back."""
        yield from self._placed(self._resampler.resample(None))

    def _placed(self, parts: list[AudioFrame]) -> Iterator[Entry[AudioFrame]]:
        for part in parts:
            yield Entry(self._time(), part)
            self._given += part.samples

    def _time(self) -> float:
        """Return when what is given next begins, in seconds of the container's clock."""
        return self._begin + self._given / self._track.rate


def _kind(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name
