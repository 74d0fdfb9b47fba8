"""Clips as members of a WebDataset sample: one picture per frame ("00.jpg", "01.jpg", …) and the waveform ("wav").

``encode_clip`` makes JPEGs of full colour resolution (4:4:4) and 16-bit mono PCM, of clips to train on.
``encode_lossless`` makes PNGs ("00.png", …) and 32-bit floats, of samples to measure. ``decode_clip`` reads both.
"""

import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image

from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.wav import decode_wav, encode_float_wav, encode_wav

PIXEL_LIMIT = 4096 * 4096  # pixels of a frame; a picture whose header claims more is not decoded
FRAMES = {".jpg": "JPEG", ".png": "PNG"}  # formats of frames, by the ending of their members


def frame_member(number: int, frames: int, ending: str = ".jpg") -> str:
    """Return the member name of frame ``number`` in a clip of ``frames``; names sort in frame order."""
    return f"{number:0{max(2, len(str(frames - 1)))}d}{ending}"


def encode_clip(clip: Clip, sample_rate: int, quality: int) -> dict[str, bytes]:
    """Return the members of ``clip``: its frames as JPEGs of ``quality`` (1 to 100) and its waveform as "wav"."""
    count = len(clip.frames)
    members = {frame_member(i, count): _encode_jpeg(frame, quality) for i, frame in enumerate(clip.frames)}
    return {**members, "wav": encode_wav(clip.waveform, sample_rate)}


def encode_lossless(clip: Clip, sample_rate: int) -> dict[str, bytes]:
    """Return the members of ``clip`` that give it back exactly: its frames as PNGs, its waveform as float "wav".

    A clip without frames has no PNGs, one without sound no "wav".
    """
    count = len(clip.frames)
    members = {frame_member(i, count, ".png"): _encode_png(frame) for i, frame in enumerate(clip.frames)}
    return {**members, **({"wav": encode_float_wav(clip.waveform, sample_rate)} if len(clip.waveform) else {})}


def clip_modalities(members: Collection[str]) -> list[Modality]:
    """Return the modalities that a sample with ``members`` has: a model of one alone makes samples of that one."""
    has_frames = any(name[-4:] in FRAMES for name in members)
    return [name for name in MODALITIES if (has_frames if name == "video" else "wav" in members)]


def decode_clip(
    members: Mapping[str, bytes | memoryview],
    frames: Sequence[int] | None = None,
    media: MediaConfig | None = None,
    modalities: Sequence[Modality] = MODALITIES,
) -> Clip:
    """Return the clip in ``members``, with the frames numbered ``frames`` in that order (all if None).

    Only ``modalities`` are decoded, and needed; the other has no frames, or no samples.

    Raises:
        ValueError: a member is missing or has another format, or sizes differ between frames or from ``media``, if
            given.
    """
    names = sorted(name for name in members if name[-4:] in FRAMES)
    if ("audio" in modalities and "wav" not in members) or ("video" in modalities and not names):
        raise ValueError(f"contains no clip; its members are {', '.join(members)}")
    pictures, waveform = NO_FRAMES, NO_SOUND
    if "video" in modalities:
        chosen = names if frames is None else [names[number] for number in frames]
        pictures = np.stack([_decode_picture(members[name], FRAMES[name[-4:]]) for name in chosen])  # (F, H, W, 3)
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


def _encode_png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _decode_picture(data: bytes | memoryview, kind: str) -> np.ndarray:
    """Return the (H, W, 3) uint8 picture that is a file of ``kind``, "JPEG" or "PNG"; raise ValueError if it is not."""
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise ValueError(f"a frame of {image.width}×{image.height} pixels is too large")
            return np.asarray(image.convert("RGB"))  # (H, W, 3)
    # What Pillow raises for damaged or oversized pictures; SyntaxError for chunks of a PNG.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a frame is not a complete {kind}: {error}") from None
