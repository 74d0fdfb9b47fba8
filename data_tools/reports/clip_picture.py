"""A clip as one picture: some of its frames in a row, and below them, on the same axis of time, its sound."""

import numpy as np
from PIL import Image

from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.spectrogram import spectrogram

THUMB = 96  # pixels of a frame
SOUND = 64  # pixels of a spectrogram's height


def clip_picture(clip: Clip, audio_image: AudioImage, frames: int) -> Image.Image:
    """Return ``frames`` frames of ``clip``, over its mel spectrogram: RGB, frames × THUMB pixels wide."""
    last = len(clip.frames) - 1
    picture = Image.new("RGB", (frames * THUMB, THUMB + SOUND))
    for place, number in enumerate(np.linspace(0, last, frames).round().astype(int)):
        picture.paste(Image.fromarray(clip.frames[number]).resize((THUMB, THUMB)), (place * THUMB, 0))
    sound = spectrogram(clip.waveform, audio_image).convert("RGB")
    picture.paste(sound.resize((picture.width, SOUND)), (0, THUMB))
    return picture
