"""Vocoders, from mel magnitudes to waveforms: HiFi-GAN if weights are given, otherwise Griffin-Lim.

``load_vocoder(path, audio)`` returns a function ``vocoder(decibels (B, n_mels, T), samples) -> (B, samples)``. Both
kinds keep the time grid of :mod:`mmldm_scale.media.audio_image` (frame t is centred on sample (t + 1/2) · hop), and are
pure functions of each spectrogram: its waveform does not depend on the rest of the batch.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio

from mmldm_scale.config import AudioImageConfig
from mmldm_scale.media.audio_image import mel_spectrogram

Vocoder = Callable[[torch.Tensor, int], torch.Tensor]


def load_vocoder(path: str | None, audio: AudioImageConfig) -> Vocoder:
    """Return the HiFi-GAN at ``path`` (see :mod:`mmldm_scale.media.hifi_gan`), or Griffin-Lim if ``path`` is None.

    Raises:
        UserError: there is no HiFi-GAN at ``path``, it is damaged, or its mel settings differ from ``audio``.
    """
    if path is None:
        return GriffinLim(audio)
    from mmldm_scale.media.hifi_gan import HifiGan, load_generator  # imports transformers, which takes a second

    return HifiGan(load_generator(Path(path), audio))


class GriffinLim:
    """Griffin-Lim phase reconstruction, from linear magnitudes estimated by non-negative least squares."""

    INVERSION_STEPS = 200  # multiplicative updates of the mel inversion
    ITERATIONS = 64  # of Griffin-Lim
    MOMENTUM = 0.99  # of fast Griffin-Lim
    SEED = 0  # of the initial phases, equal for all spectrograms

    def __init__(self, audio: AudioImageConfig) -> None:
        self.audio = audio
        self.filters = mel_spectrogram(audio).mel_scale.fb  # (n_fft // 2 + 1, n_mels)
        self.phases = torchaudio.transforms.GriffinLim(
            n_fft=audio.n_fft,
            n_iter=self.ITERATIONS,
            win_length=audio.win_length,
            hop_length=audio.hop_length,
            power=1.0,
            momentum=self.MOMENTUM,
            rand_init=True,
        )

    def __call__(self, decibels: torch.Tensor, samples: int) -> torch.Tensor:
        """Return the (B, samples) float32 waveforms of mel magnitudes (B, n_mels, T) in dB; computed on the CPU."""
        sounds = [self._invert(spectrogram, samples) for spectrogram in decibels.detach().float().cpu()]
        return torch.stack(sounds).to(decibels.device)

    def _invert(self, decibels: torch.Tensor, samples: int) -> torch.Tensor:
        magnitude = self._linear(10 ** (decibels / 20))
        # Griffin-Lim centres frame t on sample t · hop. With one more frame at the front its time zero is half a hop
        # before ours; the one at the back extends the end.
        magnitude = F.pad(magnitude, (1, 1), mode="replicate")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.SEED)
            sound = self.phases(magnitude)
        sound = sound[self.audio.hop_length // 2 :][:samples]
        return F.pad(sound, (0, samples - len(sound))).clamp(-1, 1)

    def _linear(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the (n_fft // 2 + 1, T) magnitudes >= 0 whose mels come closest to ``mel`` (n_mels, T).

        Uses Lee and Seung's multiplicative updates. They keep the sign and, started from the filters' spread, give
        smoother spectra than least squares.
        """
        spread = self.filters @ mel  # (n_fft // 2 + 1, T)
        linear = spread.clone()
        for _ in range(self.INVERSION_STEPS):
            linear = linear * spread / (self.filters @ (self.filters.T @ linear)).clamp(min=1e-12)
        return linear
