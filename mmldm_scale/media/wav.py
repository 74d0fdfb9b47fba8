"""Waveforms as mono WAV files: :func:`write_wav` and :func:`encode_wav` with 16 bits, :func:`encode_float_wav` exactly.

:func:`decode_wav` reads both.
"""

import io
import struct
import wave
from pathlib import Path

import numpy as np

from mmldm_scale.common.atomic_files import write_whole

_FULL_SCALE = 32768  # 16-bit level of a waveform value of 1.0
_FLOAT = 3  # number of the format "IEEE float", which the module wave does not know
# RIFF, its size, WAVE; fmt, its size, format, channels, rate, bytes per second, bytes per sample, bits, size of an
# extension; fact, its size, number of samples; data, its size
_FLOAT_HEADER = struct.Struct("<4sI4s 4sIHHIIHHH 4sII 4sI")


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


def encode_float_wav(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return ``waveform`` (N,) float32, mono at ``sample_rate`` Hz, as a file that has its 32-bit floats unchanged."""
    return _float_header(len(waveform), sample_rate) + waveform.astype("<f4").tobytes()


def decode_wav(data: bytes | memoryview) -> np.ndarray:
    """Return the waveform (N,) float32 of a file that :func:`encode_wav` or :func:`encode_float_wav` made.

    Raises:
        ValueError: it is damaged, or neither 16-bit mono PCM nor written by :func:`encode_float_wav`.
    """
    if len(data) >= _FLOAT_HEADER.size and _FLOAT_HEADER.unpack_from(data)[5] == _FLOAT:
        return _decode_float(data)
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                bits = 8 * file.getsampwidth()
                raise ValueError(f"sound has {file.getnchannels()} channels of {bits} bits; expected 1 of 16")
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"sound is not a complete WAV: {error}") from None
    return levels.astype(np.float32) / _FULL_SCALE  # (N,)


def _float_header(samples: int, sample_rate: int) -> bytes:
    content = 4 * samples  # bytes
    riff = b"RIFF", _FLOAT_HEADER.size - 8 + content, b"WAVE"
    layout = b"fmt ", 18, _FLOAT, 1, sample_rate, 4 * sample_rate, 4, 32, 0
    return _FLOAT_HEADER.pack(*riff, *layout, b"fact", 4, samples, b"data", content)


def _decode_float(data: bytes | memoryview) -> np.ndarray:
    """Return the waveform of a file whose header says that it has floats; raise ValueError if it is not ours."""
    sample_rate, content = _FLOAT_HEADER.unpack_from(data)[7], len(data) - _FLOAT_HEADER.size
    if content % 4 or bytes(data[: _FLOAT_HEADER.size]) != _float_header(content // 4, sample_rate):
        raise ValueError("sound is not a complete WAV of 1 channel of 32-bit floats")
    waveform = np.frombuffer(data, "<f4", offset=_FLOAT_HEADER.size).astype(np.float32)  # (N,)
    if not np.isfinite(waveform).all():
        raise ValueError("sound has values that are not finite")
    return waveform
