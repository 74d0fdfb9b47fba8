"""Pictures of clips for the page on memorisation: some frames side by side, the spectrogram of the sound below."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.sound_extractor import resample
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.spectrogram import spectrogram

FRAMES = 8  # of a clip, spread evenly over it
FRAME, SOUND = 96, 48  # pixels: height of a frame, and of a spectrogram
QUALITY = 85  # of the JPEG


class ClipPictures:
    """Draws clips; the spectrograms of all have the same axes, whatever the clips' sample rates."""

    def __init__(self) -> None:
        self._audio = AudioImageConfig()
        self._audio_image = AudioImage(MediaConfig(frames=1, fps=1, audio=self._audio))

    def address(self, record: ClipRecord) -> str:
        """Return the picture of ``record`` as a "data:" address, for a page that needs no other file."""
        rows = []
        if len(record.clip.frames):
            rows.append(_frames(record.clip.frames))
        if len(record.clip.waveform):
            rows.append(self._sound(record, rows[0].width if rows else FRAMES * FRAME))
        picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
        top = 0
        for row in rows:
            picture.paste(row, (0, top))
            top += row.height
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

    def _sound(self, record: ClipRecord, width: int) -> Image.Image:
        waveform = torch.from_numpy(record.clip.waveform.copy())
        sound = resample(waveform, record.sample_rate, self._audio.sample_rate).numpy()
        missing = max(0, self._audio.n_fft - len(sound))  # the transform mirrors the ends
        picture = spectrogram(np.pad(sound, (0, missing)), self._audio_image)
        return picture.convert("RGB").resize((width, SOUND))


def _frames(frames: np.ndarray) -> Image.Image:
    """Return some of ``frames`` (F, H, W, 3) uint8 side by side."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
    height, width = chosen.shape[1:3]
    size = (max(1, round(width * FRAME / height)), FRAME)
    strip = np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in chosen], axis=1)
    return Image.fromarray(strip)
