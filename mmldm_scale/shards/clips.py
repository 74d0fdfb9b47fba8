"""Clips as members of a WebDataset sample: one JPEG per frame ("00.jpg", "01.jpg", …) and the waveform ("wav").

``encode_clip`` and ``decode_clip`` convert. The JPEGs keep full colour resolution (4:4:4); the waveform is 16-bit mono
PCM.
"""

import io
import wave
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip

PIXEL_LIMIT = 4096 * 4096  # pixels of a frame; a JPEG whose header claims more is not decoded
_FULL_SCALE = 32768  # 16-bit level of a waveform value of 1.0


def frame_member(number: int, frames: int) -> str:
    """Return the member name of frame ``number`` in a clip of ``frames``; names sort in frame order."""
    return f"{number:0{max(2, len(str(frames - 1)))}d}.jpg"


def encode_clip(clip: Clip, sample_rate: int, quality: int) -> dict[str, bytes]:
    """Return the members of ``clip``: its frames as JPEGs of ``quality`` (1 to 100) and its waveform as "wav"."""
    count = len(clip.frames)
    members = {frame_member(i, count): _encode_jpeg(frame, quality) for i, frame in enumerate(clip.frames)}
    return {**members, "wav": _encode_wave(clip.waveform, sample_rate)}


def decode_clip(
    members: Mapping[str, bytes | memoryview], frames: Sequence[int] | None = None, media: MediaConfig | None = None
) -> Clip:
    """Return the clip in ``members``, with the frames numbered ``frames`` in that order (all if None).

    Raises:
        ValueError: a member is missing or has another format, or sizes differ between frames or from ``media``, if
            given.
    """
    names = sorted(name for name in members if name.endswith(".jpg"))
    if "wav" not in members or not names:
        raise ValueError(f"contains no clip; its members are {', '.join(members)}")
    chosen = names if frames is None else [names[number] for number in frames]
    pictures = np.stack([_decode_jpeg(members[name]) for name in chosen])  # (F, H, W, 3)
    clip = Clip(pictures, _decode_wave(members["wav"]))
    if media is not None:
        count = media.frames if frames is None else len(frames)
        shapes = clip.frames.shape, clip.waveform.shape
        expected = (count, media.size, media.size, 3), (media.audio_samples,)
        if shapes != expected:
            raise ValueError(f"frames and waveform have shapes {shapes}; expected {expected}")
    return clip


def _encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise ValueError(f"a frame of {image.width}×{image.height} pixels is too large")
            return np.asarray(image.convert("RGB"))  # (H, W, 3)
    except (OSError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged or oversized JPEGs
        raise ValueError(f"a frame is not a complete JPEG: {error}") from None


def _encode_wave(waveform: np.ndarray, sample_rate: int) -> bytes:
    levels = np.clip(np.round(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(levels.tobytes())
    return buffer.getvalue()


def _decode_wave(data: bytes | memoryview) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                bits = 8 * file.getsampwidth()
                raise ValueError(f"sound has {file.getnchannels()} channels of {bits} bits; expected 1 of 16")
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"sound is not a complete WAV: {error}") from None
    return levels.astype(np.float32) / _FULL_SCALE  # (N,)
