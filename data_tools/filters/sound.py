"""Measures of the sound: the mono mix at the file's own rate, as in a :class:`LowResView`; full scale is 1."""

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph

from .low_res_view import LowResView

SHORTEST = 0.4  # seconds: the gating block of BS.1770, below which there is no integrated loudness
BLOCK = 0.05  # seconds over which the level is taken to tell silence
CLIPPED = 0.99  # of full scale, -0.09 dB
HOP = 0.01  # seconds between two columns of a spectrogram
FLOOR_DB = -80.0  # of a full-scale sine: the least level in a spectrogram


def loudness(view: LowResView) -> float | None:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4, by FFmpeg's ebur128), -70 where all is below the gate.

    The mono mix counts as played by two speakers, so that a full-scale 997 Hz sine has 0 LUFS in it as in a stereo
    file. None for less than 0.4 s.
    """
    if len(view.sound) < SHORTEST * view.rate:
        return None
    graph = Graph()
    source = graph.add_abuffer(sample_rate=view.rate, format="flt", layout="mono")
    meter, sink = graph.add("ebur128", "metadata=1:dualmono=1:framelog=quiet"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    level = None
    for first in [*range(0, len(view.sound), view.rate), None]:
        graph.push(None if first is None else _frame(view.sound[first : first + view.rate], view.rate, first))
        level = _last_level(graph) or level
    return None if level is None else float(level)


def silent_fraction(view: LowResView, silence_db: float = -60.0) -> float:
    """Return the share (0 to 1) of 50 ms blocks whose RMS level lies below ``silence_db`` (dB of full scale)."""
    size = max(1, round(BLOCK * view.rate))
    blocks = view.sound[: max(size, len(view.sound) // size * size)]
    power = (blocks.reshape(-1, min(size, len(blocks))).astype(np.float64) ** 2).mean(1)  # (blocks,)
    return float((power < 10 ** (silence_db / 10)).mean())


def clipped_fraction(view: LowResView) -> float:
    """Return the share (0 to 1) of samples at 99 % of full scale or more, where what is too loud ends up."""
    return float((np.abs(view.sound) >= CLIPPED).mean())


def spectrogram(view: LowResView, low: float, high: float, bands: int) -> np.ndarray:
    """Return the level (dB of a full-scale sine, -80 at least) in ``bands`` bands every 10 ms, (C, bands) float32.

    The bands are spaced evenly on a logarithmic scale from ``low`` to ``high`` Hz; where the file's sound does not
    reach so high they end at half its rate. Column c is centred at c / 100 s; windows are of Hann's shape, 40 ms long.
    """
    high = min(high, view.rate / 2)
    size = max(16, round(4 * HOP * view.rate))
    columns = max(1, round(len(view.sound) / (HOP * view.rate)))
    centres = np.round(np.arange(columns) * HOP * view.rate).astype(int)
    padded = np.pad(view.sound, (size // 2, size))
    window = np.hanning(size).astype(np.float32)
    edges = np.geomspace(low, max(high, 2 * low), bands + 1) * size / view.rate  # in bins
    first = np.minimum(edges[:-1].astype(int), size // 2 - 1)
    last = np.minimum(np.maximum(first + 1, np.ceil(edges[1:]).astype(int)), size // 2)
    levels = np.empty((columns, bands), np.float32)
    for begin in range(0, columns, 1000):  # 10 s at once
        part = centres[begin : begin + 1000, None] + np.arange(size)
        power = np.abs(np.fft.rfft(padded[part] * window)) ** 2 * (2 / window.sum()) ** 2
        sums = np.concatenate([np.zeros((len(part), 1)), np.cumsum(power, 1)], 1)
        levels[begin : begin + 1000] = 10 * np.log10(np.maximum(sums[:, last] - sums[:, first], 10 ** (FLOOR_DB / 10)))
    return levels


def _frame(samples: np.ndarray, rate: int, first: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
    frame.sample_rate = rate
    frame.pts = first
    return frame


def _last_level(graph: Graph) -> str | None:
    """Return the integrated loudness in the last ready frame of the graph that has one; None if none has."""
    level = None
    while True:
        try:
            level = graph.pull().metadata.get("lavfi.r128.I", level)
        except (av.BlockingIOError, av.EOFError):
            return level
