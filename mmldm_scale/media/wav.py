"""Waveforms as WAV files, 16-bit mono PCM: :func:`encode_wav`, :func:`decode_wav` and :func:`write_wav`."""

import io
import wave
from pathlib import Path

import numpy as np

from mmldm_scale.common.atomic_files import write_whole

_FULL_SCALE = 32768  # 16-bit level of a waveform value of 1.0


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write ``waveform`` (N,) float32 in [-1, 1], mono at ``sample_rate`` Hz, to ``path``, whole or not at all."""
    write_whole(path, encode_wav(waveform, sample_rate))


def encode_wav(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return ``waveform`` (N,) float32, mono at ``sample_rate`` Hz, as a file; values outside [-1, 1] are clipped."""
    levels = np.clip(np.round(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(levels.tobytes())
    return buffer.getvalue()


def decode_wav(data: bytes | memoryview) -> np.ndarray:
    """Return the waveform (N,) float32 in [-1, 1] of a file that :func:`encode_wav` made.

    Raises:
        ValueError: it is damaged, or not 16-bit mono PCM.
    """
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                bits = 8 * file.getsampwidth()
                raise ValueError(f"sound has {file.getnchannels()} channels of {bits} bits; expected 1 of 16")
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"sound is not a complete WAV: {error}") from None
    return levels.astype(np.float32) / _FULL_SCALE  # (N,)
