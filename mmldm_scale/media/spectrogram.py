"""Spectrograms to look at: the mel levels of a sound in colours, from dark for silence to bright for loud."""

import numpy as np
import torch
from PIL import Image

from mmldm_scale.media.audio_image import AudioImage

COLOURS = ((13, 12, 34), (78, 22, 106), (176, 50, 90), (240, 120, 50), (252, 240, 170))  # from the least to the most
LEVELS = 256  # of a picture with a palette


def spectrogram(waveform: np.ndarray, audio_image: AudioImage) -> Image.Image:
    """Return the mel spectrogram of ``waveform`` (N,) float32 as a picture of T × n_mels pixels with a palette.

    Time increases to the right and frequency upwards; the colours span the levels of the audio image.
    """
    audio = audio_image.audio
    decibels = audio_image.decibels(torch.from_numpy(waveform.copy())[None])[0].numpy()  # (n_mels, T)
    share = (decibels - audio.floor_db) / (audio.ceiling_db - audio.floor_db)
    picture = Image.fromarray(np.round(share[::-1] * (LEVELS - 1)).astype(np.uint8))
    picture.putpalette(coloured(np.linspace(0, 1, LEVELS), COLOURS).tobytes())  # makes it one of mode "P"
    return picture


def coloured(share: np.ndarray, anchors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Return ``share`` (…), 0 for the first of ``anchors`` to 1 for the last, as colours (…, 3) uint8, RGB."""
    places = np.linspace(0, 1, len(anchors))
    bounded = np.clip(share, 0, 1)
    return np.stack([np.interp(bounded, places, channel) for channel in np.array(anchors).T], -1).astype(np.uint8)
