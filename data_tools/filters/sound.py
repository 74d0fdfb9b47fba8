"""Measures of the sound: the mono mix at the file's own rate, as in a Look; full scale is 1."""

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph

from .low_res_view import Look

SHORTEST = 0.4  # seconds: the gating block of BS.1770, below which there is no integrated loudness
BLOCK = 0.05  # seconds over which the level is taken to tell silence
CLIPPED = 0.99  # of full scale, -0.09 dB
HOP = 0.01  # seconds between two columns of a spectrogram
FLOOR_DB = -80.0  # of a full-scale sine: the least level in a spectrogram


def loudness(look: Look) -> float | None:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4, by FFmpeg's ebur128), -70 where all is below the gate.

    The mono mix counts as played by two speakers, so that a full-scale 997 Hz sine has 0 LUFS in it as in a stereo
    file. None for less than 0.4 s.
    """
    if len(look.sound) < SHORTEST * look.rate:
        return None
    graph = Graph()
    source = graph.add_abuffer(sample_rate=look.rate, format="flt", layout="mono")
    meter, sink = graph.add("ebur128", "metadata=1:dualmono=1:framelog=quiet"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    told = None
    for first in [*range(0, len(look.sound), look.rate), None]:
        graph.push(None if first is None else _frame(look.sound[first : first + look.rate], look.rate, first))
        told = _last_told(graph) or told
    return None if told is None else float(told)


def silent_fraction(look: Look, silence_db: float = -60.0) -> float:
    """Return the share (0 to 1) of 50 ms blocks whose RMS level lies below ``silence_db`` (dB of full scale)."""
    size = max(1, round(BLOCK * look.rate))
    blocks = look.sound[: max(size, len(look.sound) // size * size)]
    power = (blocks.reshape(-1, min(size, len(blocks))).astype(np.float64) ** 2).mean(1)  # (blocks,)
    return float((power < 10 ** (silence_db / 10)).mean())


def clipped_fraction(look: Look) -> float:
    """Return the share (0 to 1) of samples at 99 % of full scale or more, where what is too loud ends up."""
    return float((np.abs(look.sound) >= CLIPPED).mean())


def spectrogram(look: Look, low: float, high: float, bands: int) -> np.ndarray:
    """Return the level (dB of a full-scale sine, -80 at least) in ``bands`` bands every 10 ms, (C, bands) float32.

    The bands are spaced evenly on a logarithmic scale from ``low`` to ``high`` Hz; where the file's sound does not
    reach so high they end at half its rate. Column c is centred at c / 100 s; windows are of Hann's shape, 40 ms long.
    """
    high = min(high, look.rate / 2)
    size = max(16, round(4 * HOP * look.rate))
    columns = max(1, round(len(look.sound) / (HOP * look.rate)))
    centres = np.round(np.arange(columns) * HOP * look.rate).astype(int)
    padded = np.pad(look.sound, (size // 2, size))
    window = np.hanning(size).astype(np.float32)
    edges = np.geomspace(low, max(high, 2 * low), bands + 1) * size / look.rate  # in bins
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


def _last_told(graph: Graph) -> str | None:
    """Return the integrated loudness in the last of the frames that the graph has ready and that tell one."""
    told = None
    while True:
        try:
            told = graph.pull().metadata.get("lavfi.r128.I", told)
        except (av.BlockingIOError, av.EOFError):
            return told
