"""A waveform as it comes back from the lossy track of an mp4: :func:`through_aac`."""

import io
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from mmldm_scale.media.encode import AAC_RATES

BIT_RATE = 128_000  # bits per second, as in the files that the package writes


def through_aac(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return ``waveform`` (N,) float32, mono, encoded as AAC and decoded again, (N,) float32 in [-1, 1], not shifted.

    Raises:
        ValueError: ``sample_rate`` is none of AAC's.
    """
    if sample_rate not in AAC_RATES:
        raise ValueError(f"{sample_rate} Hz: AAC has only {', '.join(map(str, AAC_RATES))} Hz")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=sample_rate, layout="mono")
        stream.bit_rate = BIT_RATE
        sound = np.clip(waveform, -1.0, 1.0).astype(np.float32)[None]  # (1, N)
        frame = AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    return _decoded(file, len(waveform))


def _decoded(file: io.BytesIO, samples: int) -> np.ndarray:
    """Return the first ``samples`` samples of the track in ``file``, placed by their timestamps."""
    track = np.zeros(samples, np.float32)
    resampler = AudioResampler(format="fltp", layout="mono")
    with av.open(file, "r") as container:
        for frame in container.decode(audio=0):
            first = round(float(frame.time or 0) * frame.sample_rate)
            for part in resampler.resample(frame):
                sound = part.to_ndarray()[0]
                skip = max(0, -first)  # the encoder's priming, before time 0
                end = min(samples, first + len(sound))
                if first + skip < end:
                    track[first + skip : end] = sound[skip : end - first]
                first += len(sound)
    return track.clip(-1.0, 1.0)
