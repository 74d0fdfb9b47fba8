"""Sound as a picture: the mel spectrogram, in decibels, resized to the video's square and back (paper, section 3.1).

The recipe is HiFi-GAN's: magnitude spectrogram, Slaney scale and norm, frames that tile the waveform (frame t is
centred on sample (t + 1/2) · hop). Levels from ``floor_db`` to ``ceiling_db`` become [-1, 1]. Everything stays in
floats, and the resize is a fixed linear map with an exact inverse as long as the picture is no smaller than the
spectrogram: nothing is lost to 8 bits or to a bicubic there and back.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_signal

MIN_MAGNITUDE = 1e-5  # HiFi-GAN's clamp, -100 dB


def frame_count(samples: int, audio: AudioImageConfig) -> int:
    """Return T, the number of spectrogram frames of ``samples`` samples; the last one may reach past their end."""
    return -(-samples // audio.hop_length)


class AudioImage:
    """Waveforms into square pictures and pictures into mel magnitudes, for one media configuration.

    It holds no parameters and works in float32 on its input's device, whatever the precision around it.
    """

    def __init__(self, media: MediaConfig) -> None:
        self.audio = media.audio
        with torch.device("cpu"):  # where a model is built on shapes alone, too
            self.mel = mel_spectrogram(media.audio)
            self._across_mels = resize_matrix(media.audio.n_mels, media.size)  # (S, n_mels)
            self._across_time = resize_matrix(frame_count(media.audio_samples, media.audio), media.size)  # (S, T)
            self._mels_back = torch.linalg.pinv(self._across_mels)  # (n_mels, S)
            self._time_back = torch.linalg.pinv(self._across_time)  # (T, S)

    def decibels(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the mel magnitudes of ``waveform`` (B, N) in dB, clipped to the picture's range: (B, n_mels, T)."""
        audio = self.audio
        tail = -waveform.shape[-1] % audio.hop_length
        border = audio.n_fft - audio.hop_length
        with _without_autocast(waveform):
            whole = F.pad(waveform.float(), (0, tail))
            padded = F.pad(whole, (border // 2, border - border // 2), mode="reflect")
            magnitude = self.mel.to(waveform.device)(padded)  # (B, n_mels, T)
        return magnitude.clamp(min=MIN_MAGNITUDE).log10().mul(20).clamp(audio.floor_db, audio.ceiling_db)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return ``waveform`` (B, N) float32 as pictures (B, 3, S, S) float32 in [-1, 1].

        Time runs to the right and frequency upwards; the three channels are equal.
        """
        audio = self.audio
        levels = (self.decibels(waveform) - audio.floor_db) / (audio.ceiling_db - audio.floor_db)  # [0, 1]
        picture = _both_ways(self._across_mels, levels, self._across_time).mul(2).sub(1).clamp(-1, 1)
        return picture.flip(-2).unsqueeze(1).repeat(1, 3, 1, 1)  # (B, S, S) -> (B, 3, S, S)

    def to_decibels(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mel magnitudes in dB, (B, n_mels, T), of a picture (B, 3, S, S) in [-1, 1].

        The inverse of :meth:`encode` on the mean of the three channels; in the least-squares sense where the picture
        is smaller than the spectrogram or was not made by :meth:`encode`.
        """
        audio = self.audio
        levels = image.float().mean(1).flip(-2).add(1).div(2)  # (B, 3, S, S) -> (B, S, S) in [0, 1]
        levels = _both_ways(self._mels_back, levels, self._time_back).clamp(0, 1)
        return levels * (audio.ceiling_db - audio.floor_db) + audio.floor_db


def mel_spectrogram(audio: AudioImageConfig) -> torchaudio.transforms.MelSpectrogram:
    """Return the transform (B, samples) -> (B, n_mels, frames) of HiFi-GAN's recipe; padding is the caller's."""
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
    """Return the (target, source) float64 matrix of linear interpolation, averaging where it shrinks."""
    unit = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, source, source)
    return F.interpolate(unit, (target, source), mode="bilinear", antialias=True)[0, 0]


def _both_ways(rows: torch.Tensor, picture: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return ``rows`` @ ``picture`` @ ``columns``ᵀ for each (H, W) picture of the batch, in float32."""
    with _without_autocast(picture):
        rows, columns = rows.to(picture), columns.to(picture)
        return rows @ picture.float() @ columns.T


def _without_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    """Switch autocast off for work on ``tensor``, if its device has any: "meta", shapes alone, has not."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def signals(clips: Sequence[Clip], audio_image: AudioImage, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frames (B, F, 3, S, S) and audio images (B, 3, S, S) of ``clips``, in [-1, 1] on ``device``."""
    frames = to_signal(np.stack([clip.frames for clip in clips])).to(device)
    waveforms = torch.from_numpy(np.stack([clip.waveform for clip in clips])).to(device)  # (B, N)
    return frames, audio_image.encode(waveforms)
