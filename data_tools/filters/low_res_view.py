"""What the measures see and hear of a stretch: small grey pictures, ten a second, and the sound.

``low_res_view(file, begin, end, …)`` decodes the stretch once through ``media.decode``, so that the measures have the
clock, the crop and the mono mix of training's clips. The measures work on the arrays of a :class:`LowResView`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import read_clips

FPS = 10  # pictures a second
SIZE = 128  # pixels a side
DETAIL = 2  # a detailed picture has DETAIL · SIZE pixels a side
DETAIL_EVERY = 5  # pictures from one detailed picture to the next
PIECE = 100  # pictures decoded at once: 10 s
FEWEST = 5  # pictures: a shorter stretch is not measured


@dataclass(frozen=True, eq=False)
class LowResView:
    """One stretch, or pieces of a long one laid end to end.

    Attributes:
        pictures: (T, 128, 128) uint8, BT.601 luma (0 black, 255 white) of the centre crop, 0.1 s apart.
        details: (ceil(T / 5), 256, 256) uint8, every fifth of them at the resolution that training has.
        seams: numbers of the pictures that do not follow the one before, because something between was left out.
        sound: (N,) float32 in [-1, 1], mono, at the file's own ``rate`` (Hz); picture t is heard from t / 10 s on.
    """

    pictures: np.ndarray
    details: np.ndarray
    seams: tuple[int, ...]
    sound: np.ndarray
    rate: int


def low_res_view(
    file: Path,
    begin: float,
    end: float,
    rate: int,
    seconds: float = 60.0,
    sound: Path | None = None,
    audio_stream: int | None = None,
) -> LowResView:
    """Decode seconds [begin, end) of ``file``, or of a longer stretch pieces of 10 s that add up to ``seconds``.

    Args:
        file: with picture and sound; ``sound``, if given, is a file whose sound is used instead.
        begin, end: on the clock of ``media.decode``.
        rate: of the sound, in Hz, as ``probe`` says.
        audio_stream: as in ``probe``.

    Raises:
        MediaError: too_short (less than half a second), or as ``read_clips`` where any of it is damaged or missing.
    """
    starts, frames = _pieces(end - begin, seconds)
    if frames < FEWEST:
        raise MediaError("too_short", f"{end - begin:.3f} s; at least {FEWEST / FPS:g} s can be measured")
    media = MediaConfig(frames, FPS, DETAIL * SIZE, "crop", AudioImageConfig(sample_rate=rate, f_max=rate / 2))
    pictures: list[np.ndarray] = []
    details: list[np.ndarray] = []
    waveforms: list[np.ndarray] = []
    for clip in read_clips(file, [begin + start for start in starts], media, sound=sound, audio_stream=audio_stream):
        if not isinstance(clip, Clip):
            raise clip
        luma = _luma(clip.frames)
        before = len(pictures) * frames
        details.append(luma[-before % DETAIL_EVERY :: DETAIL_EVERY])
        pictures.append(_halved(luma))
        waveforms.append(clip.waveform)
    contiguous = end - begin <= seconds
    seams = () if contiguous else tuple(range(frames, len(starts) * frames, frames))
    return LowResView(np.concatenate(pictures), np.concatenate(details), seams, np.concatenate(waveforms), rate)


def _pieces(length: float, seconds: float) -> tuple[list[float], int]:
    """Return where the pieces of ``length`` seconds start, and how many pictures each has."""
    if length > seconds:
        count = max(2, int(seconds * FPS / PIECE))
        step = (length - PIECE / FPS) / (count - 1)
        return [i * step for i in range(count)], PIECE
    total = math.floor(length * FPS + 1e-6)
    count = max(1, math.ceil(total / PIECE))
    frames = total // count
    return [i * frames / FPS for i in range(count)], frames


def _luma(frames: np.ndarray) -> np.ndarray:
    """Return the (F, H, W) uint8 BT.601 luma of (F, H, W, 3) uint8 RGB."""
    luma = np.multiply(frames[..., 0], 77, dtype=np.uint16)
    luma += np.multiply(frames[..., 1], 150, dtype=np.uint16)
    luma += np.multiply(frames[..., 2], 29, dtype=np.uint16)
    return (luma >> 8).astype(np.uint8)


def _halved(pictures: np.ndarray) -> np.ndarray:
    """Return (F, H, W) uint8 at half its height and width, by the mean of 2 × 2 pixels."""
    rows = pictures[:, ::2].astype(np.uint16) + pictures[:, 1::2]  # (F, H/2, W)
    return ((rows[:, :, ::2] + rows[:, :, 1::2] + 2) >> 2).astype(np.uint8)
