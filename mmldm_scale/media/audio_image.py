"""Audio images: mel spectrograms in decibels, resized to the frames' size and back (paper, section 3.1).

:class:`AudioImage` converts. Spectrograms are those of HiFi-GAN: magnitudes, Slaney scale and norm, and frames that
tile the waveform (frame t is centred on sample (t + 1/2) · hop). Levels from ``floor_db`` to ``ceiling_db`` become
[-1, 1]. The resize is a fixed linear map in floats, with an exact inverse if the image is at least as large as the
spectrogram; unlike 8-bit images and bicubic resizing, it loses nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch.amp.autocast_mode import is_autocast_available

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_signal

MIN_MAGNITUDE = 1e-5  # smallest mel magnitude, as in HiFi-GAN: -100 dB


class AudioImage:
    """Converts waveforms to audio images and audio images to mel magnitudes, for one media configuration.

    It has no parameters and works in float32 on its input's device, also under autocast.
    """

    def __init__(self, media: MediaConfig) -> None:
        self.audio = media.audio
        with torch.device("cpu"):  # even if a model is built on the meta device
            self.mel = mel_spectrogram(media.audio)
            self._across_mels = resize_matrix(media.audio.n_mels, media.size)  # (S, n_mels)
            self._across_time = resize_matrix(media.mel_frames, media.size)  # (S, T)
            self._mels_back = torch.linalg.pinv(self._across_mels)  # (n_mels, S)
            self._time_back = torch.linalg.pinv(self._across_time)  # (T, S)

    def decibels(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the mel magnitudes of ``waveform`` (B, N) in dB, clipped to the image's range: (B, n_mels, T)."""
        audio = self.audio
        tail = -waveform.shape[-1] % audio.hop_length
        border = audio.n_fft - audio.hop_length
        with _without_autocast(waveform):
            whole = F.pad(waveform.float(), (0, tail))
            padded = F.pad(whole, (border // 2, border - border // 2), mode="reflect")
            magnitude = self.mel.to(waveform.device)(padded)  # (B, n_mels, T)
        return magnitude.clamp(min=MIN_MAGNITUDE).log10().mul(20).clamp(audio.floor_db, audio.ceiling_db)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return ``waveform`` (B, N) float32 as audio images (B, 3, S, S) float32 in [-1, 1].

        Time increases to the right and frequency upwards; the three channels are equal.
        """
        audio = self.audio
        levels = (self.decibels(waveform) - audio.floor_db) / (audio.ceiling_db - audio.floor_db)  # [0, 1]
        picture = _both_ways(self._across_mels, levels, self._across_time).mul(2).sub(1).clamp(-1, 1)
        return picture.flip(-2).unsqueeze(1).repeat(1, 3, 1, 1)  # (B, S, S) -> (B, 3, S, S)

    def to_decibels(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mel magnitudes in dB, (B, n_mels, T), of audio images (B, 3, S, S) in [-1, 1].

        Inverts :meth:`encode` on the mean of the three channels; in the least-squares sense if the image is smaller
        than the spectrogram or was not made by :meth:`encode`.
        """
        audio = self.audio
        levels = image.float().mean(1).flip(-2).add(1).div(2)  # (B, 3, S, S) -> (B, S, S) in [0, 1]
        levels = _both_ways(self._mels_back, levels, self._time_back).clamp(0, 1)
        return levels * (audio.ceiling_db - audio.floor_db) + audio.floor_db


def mel_spectrogram(audio: AudioImageConfig) -> torchaudio.transforms.MelSpectrogram:
    """Return the transform (B, samples) -> (B, n_mels, frames) with HiFi-GAN's settings; the caller pads."""
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=audio.sample_rate,
        n_fft=audio.n_fft,
        win_length=audio.win_length,
        hop_length=audio.hop_length,
        f_min=audio.f_min,
        f_max=audio.f_max,
        n_mels=audio.n_mels,
        power=1.0,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    )


def resize_matrix(source: int, target: int) -> torch.Tensor:
    """Return the (target, source) float64 matrix of linear interpolation, with averaging if it shrinks."""
    unit = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, source, source)
    return F.interpolate(unit, (target, source), mode="bilinear", antialias=True)[0, 0]


def _both_ways(rows: torch.Tensor, picture: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return ``rows`` @ ``picture`` @ ``columns``ᵀ for each (H, W) picture of the batch, in float32."""
    with _without_autocast(picture):
        rows, columns = rows.to(picture), columns.to(picture)
        return rows @ picture.float() @ columns.T


def _without_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    """Return a context without autocast on the device of ``tensor``; the meta device has no autocast."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def signals(clips: Sequence[Clip], audio_image: AudioImage, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frames (B, F, 3, S, S) and audio images (B, 3, S, S) of ``clips``, in [-1, 1] on ``device``."""
    return frame_signals(clips, device), audio_image.encode(waveforms(clips, device))


def frame_signals(clips: Sequence[Clip], device: torch.device) -> torch.Tensor:
    """Return the frames (B, F, 3, S, S) of ``clips`` in [-1, 1] on ``device``."""
    return to_signal(np.stack([clip.frames for clip in clips])).to(device)


def waveforms(clips: Sequence[Clip], device: torch.device) -> torch.Tensor:
    """Return the waveforms (B, N) of ``clips`` on ``device``."""
    return torch.from_numpy(np.stack([clip.waveform for clip in clips])).to(device)
