"""Clips as members of a WebDataset sample: one JPEG per frame ("00.jpg", "01.jpg", …) and the waveform ("wav").

``encode_clip`` and ``decode_clip`` convert. The JPEGs keep full colour resolution (4:4:4); the waveform is 16-bit mono
PCM.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.wav import decode_wav, encode_wav

PIXEL_LIMIT = 4096 * 4096  # pixels of a frame; a JPEG whose header claims more is not decoded


def frame_member(number: int, frames: int) -> str:
    """Return the member name of frame ``number`` in a clip of ``frames``; names sort in frame order."""
    return f"{number:0{max(2, len(str(frames - 1)))}d}.jpg"


def encode_clip(clip: Clip, sample_rate: int, quality: int) -> dict[str, bytes]:
    """Return the members of ``clip``: its frames as JPEGs of ``quality`` (1 to 100) and its waveform as "wav"."""
    count = len(clip.frames)
    members = {frame_member(i, count): _encode_jpeg(frame, quality) for i, frame in enumerate(clip.frames)}
    return {**members, "wav": encode_wav(clip.waveform, sample_rate)}


def decode_clip(
    members: Mapping[str, bytes | memoryview],
    frames: Sequence[int] | None = None,
    media: MediaConfig | None = None,
    modalities: Sequence[Modality] = MODALITIES,
) -> Clip:
    """Return the clip in ``members``, with the frames numbered ``frames`` in that order (all if None).

    Only ``modalities`` are decoded; the other has no frames, or no samples.

    Raises:
        ValueError: a member is missing or has another format, or sizes differ between frames or from ``media``, if
            given.
    """
    names = sorted(name for name in members if name.endswith(".jpg"))
    if "wav" not in members or not names:
        raise ValueError(f"contains no clip; its members are {', '.join(members)}")
    pictures, waveform = NO_FRAMES, NO_SOUND
    if "video" in modalities:
        chosen = names if frames is None else [names[number] for number in frames]
        pictures = np.stack([_decode_jpeg(members[name]) for name in chosen])  # (F, H, W, 3)
    if "audio" in modalities:
        waveform = decode_wav(members["wav"])
    clip = Clip(pictures, waveform)
    if media is not None:
        count = media.frames if frames is None else len(frames)
        shapes = clip.frames.shape, clip.waveform.shape
        expected = (
            (count, media.size, media.size, 3) if "video" in modalities else NO_FRAMES.shape,
            (media.audio_samples,) if "audio" in modalities else NO_SOUND.shape,
        )
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
