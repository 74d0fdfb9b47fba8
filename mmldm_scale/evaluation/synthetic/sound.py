"""Onsets, pitch and class of the sound of a clip of the procedural corpus, by plain rules without any training.

An onset is where the level rises in many bands at once. The pitch of an onset is the frequency at which most power
appears with it; what still rings from the onset before is taken off. The class follows from the pitch and from how much
the sound has faded 60 ms later.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 0.024  # seconds of a spectrum, a Hann window
HOP = 0.004  # seconds from one spectrum to the next
RISE_STEPS = 3  # spectra over which a rise is measured
BANDS = 16
LOWEST, HIGHEST = 40.0, 7000.0  # Hz
SILENCE_DB = -35.0  # below the clip's loudest band: as good as silence, so that faint noise has no onsets
QUIETEST_DB = -60.0  # of a full-scale sine: a clip that has nothing louder is silent
LEAST_RISE = 2.0  # dB in the mean over bands
APART = 0.05  # seconds between two onsets at least
TONE = 0.08  # seconds from which a pitch is taken
FADING = (
    0.01,
    0.04,
    0.07,
    0.1,
)  # seconds after the onset: begin and end of the two stretches whose levels are compared
# Pitch (octaves above 1 Hz) and fading (dB) that the onsets of each class have, in the median.
TIMBRES = {"ball": (7.2, 6.0), "bell": (9.5, 2.5), "blocks": (10.2, 26.0), "rain": (11.7, 21.0)}
FADING_SCALE = 10.0  # dB of fading that count as much as one octave


class HeardHit(NamedTuple):
    """An onset: ``time`` (seconds), ``pitch`` (Hz) and ``fading`` (dB that it loses in 60 ms)."""

    time: float
    pitch: float
    fading: float


def sound_hits(waveform: np.ndarray, sample_rate: int) -> list[HeardHit]:
    """Return the onsets of the (N,) waveform in order of time; none if it is silent."""
    rise = onset_strength(waveform, sample_rate)
    reach = round(APART / 2 / HOP)
    times: list[float] = []
    for step in np.flatnonzero(rise >= LEAST_RISE):
        near = rise[max(0, step - reach) : step + reach + 1]
        time = float(step * HOP)
        if rise[step] == near.max() and (not times or time - times[-1] >= APART):
            times.append(time)
    return [HeardHit(time, pitch(waveform, sample_rate, time), fading(waveform, sample_rate, time)) for time in times]


def sound_class(hits: Sequence[HeardHit]) -> str | None:
    """Return the class whose timbre is nearest to that of the onsets; None without any."""
    if not hits:
        return None
    octaves, faded = np.median([(np.log2(hit.pitch), hit.fading) for hit in hits], axis=0)

    def distance(name: str) -> float:
        usual_octaves, usual_faded = TIMBRES[name]
        return float((octaves - usual_octaves) ** 2 + ((faded - usual_faded) / FADING_SCALE) ** 2)

    return min(TIMBRES, key=distance)


def onset_strength(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return by how many dB the bands rise within 12 ms, in the mean over bands, every ``HOP`` seconds.

    It is 0 where the window reaches over the end: that a tone is cut off there is no onset.
    """
    levels = _band_levels(waveform, sample_rate)  # (steps, bands)
    rise = np.zeros(len(levels))
    rise[RISE_STEPS:] = np.maximum(levels[RISE_STEPS:] - levels[:-RISE_STEPS], 0).mean(axis=1)
    rise[int((len(waveform) / sample_rate - WINDOW / 2) / HOP) + 1 :] = 0
    return rise


def _band_levels(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the level of each band in dB of a full-scale sine, (steps, BANDS), silence cut off."""
    size = round(WINDOW * sample_rate)  # samples
    steps = int(len(waveform) / (HOP * sample_rate))
    starts = np.round(np.arange(steps) * HOP * sample_rate).astype(int)
    mirrored = np.pad(waveform.astype(np.float64), size, mode="reflect" if len(waveform) > size else "constant")
    window = np.hanning(size)
    parts = mirrored[size - size // 2 + starts[:, None] + np.arange(size)] * window
    power = np.abs(np.fft.rfft(parts, 4 * size)) ** 2 * (2 / window.sum()) ** 2
    hertz = np.fft.rfftfreq(4 * size, 1 / sample_rate)
    edges = np.searchsorted(hertz, np.geomspace(LOWEST, min(HIGHEST, 0.45 * sample_rate), BANDS + 1))
    sums = np.concatenate([np.zeros((steps, 1)), np.cumsum(power, axis=1)], axis=1)
    levels = 10 * np.log10(np.maximum(sums[:, edges[1:]] - sums[:, edges[:-1]], 1e-30))
    return np.maximum(levels, max(levels.max(initial=QUIETEST_DB) + SILENCE_DB, QUIETEST_DB))


def pitch(waveform: np.ndarray, sample_rate: int, time: float) -> float:
    """Return the frequency (Hz) at which most power appears at ``time`` (seconds)."""
    size = round(TONE * sample_rate)
    before, after = (_stretch(waveform, sample_rate, begin, size) * np.hanning(size) for begin in (time - TONE, time))
    gained = np.abs(np.fft.rfft(after, 8 * size)) ** 2 - np.abs(np.fft.rfft(before, 8 * size)) ** 2
    hertz = np.fft.rfftfreq(8 * size, 1 / sample_rate)
    gained[hertz < LOWEST] = -np.inf
    return float(hertz[gained.argmax()])


def fading(waveform: np.ndarray, sample_rate: int, time: float) -> float:
    """Return the dB that the sound loses from shortly after ``time`` (seconds) to 60 ms later."""
    levels = []
    for begin, end in (FADING[:2], FADING[2:]):
        part = _stretch(waveform, sample_rate, time + begin, round((end - begin) * sample_rate))
        levels.append(10 * np.log10(np.mean(part**2) + 1e-9))
    return float(levels[0] - levels[1])


def _stretch(waveform: np.ndarray, sample_rate: int, begin: float, size: int) -> np.ndarray:
    """Return ``size`` samples from ``begin`` (seconds) on, zeros outside of the clip, float64."""
    padded = np.pad(waveform.astype(np.float64), size)
    first = min(max(round(begin * sample_rate) + size, 0), len(waveform) + size)
    return padded[first : first + size]
