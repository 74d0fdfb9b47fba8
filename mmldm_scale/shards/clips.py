"""A clip as members of a WebDataset sample: one JPEG a frame ("00.jpg", "01.jpg", …) and the waveform ("wav").

The JPEGs keep full colour resolution (4:4:4) at the quality given; the waveform is mono PCM, 16 bits.
"""

import io
import wave
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip

PIXEL_LIMIT = 4096 * 4096  # of a frame; a picture that claims more is not decoded
_FULL_SCALE = 32768


def frame_member(number: int, frames: int) -> str:
    """Return the name of frame ``number`` in a clip of ``frames``, so that names sort as the frames follow."""
    return f"{number:0{max(2, len(str(frames - 1)))}d}.jpg"


def encode_clip(clip: Clip, sample_rate: int, quality: int) -> dict[str, bytes]:
    """Return the members that hold ``clip``: its frames as JPEGs of ``quality`` (1..100), its waveform as "wav"."""
    count = len(clip.frames)
    members = {frame_member(i, count): _encode_jpeg(frame, quality) for i, frame in enumerate(clip.frames)}
    return {**members, "wav": _encode_wave(clip.waveform, sample_rate)}


def decode_clip(
    members: Mapping[str, bytes | memoryview], frames: Sequence[int] | None = None, media: MediaConfig | None = None
) -> Clip:
    """Return the clip that ``members`` hold, with only the ``frames`` asked for (all if None), in that order.

    Raises:
        ValueError: a member is missing, is of another format, or has another size than the rest, or than ``media`` says
            where it is given.
    """
    names = sorted(name for name in members if name.endswith(".jpg"))
    if "wav" not in members or not names:
        raise ValueError(f"holds no clip, but {', '.join(members)}")
    wanted = names if frames is None else [names[number] for number in frames]
    pictures = np.stack([_decode_jpeg(members[name]) for name in wanted])  # (F, H, W, 3)
    clip = Clip(pictures, _decode_wave(members["wav"]))
    if media is not None:
        count = media.frames if frames is None else len(frames)
        shapes = clip.frames.shape, clip.waveform.shape
        expected = (count, media.size, media.size, 3), (media.audio_samples,)
        if shapes != expected:
            raise ValueError(f"frames and waveform have shapes {shapes}, {expected} are expected")
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
    except (OSError, Image.DecompressionBombError) as error:  # Pillow's words for what is no whole, sane JPEG
        raise ValueError(f"a frame is no whole JPEG: {error}") from None


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
                raise ValueError(f"sound with {file.getnchannels()} channels of {8 * file.getsampwidth()} bits")
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"sound is no whole WAV: {error}") from None
    return levels.astype(np.float32) / _FULL_SCALE  # (N,)
