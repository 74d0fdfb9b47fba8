"""Mel magnitudes back into sound: HiFi-GAN where weights are given, Griffin-Lim where none are.

``load_vocoder(path, audio)`` returns a function ``vocoder(decibels (B, n_mels, T), samples) -> (B, samples)``. Both
kinds keep the time grid of :mod:`mmldm_scale.media.audio_image` (frame t is centred on sample (t + 1/2) · hop), and
both are pure functions of each spectrogram: the same one sounds the same whatever batch it came in.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio

from mmldm_scale.config import AudioImageConfig
from mmldm_scale.media.audio_image import mel_spectrogram
from mmldm_scale.media.hifi_gan import HifiGan

Vocoder = Callable[[torch.Tensor, int], torch.Tensor]


def load_vocoder(path: str | None, audio: AudioImageConfig) -> Vocoder:
    """Return the HiFi-GAN at ``path`` (see :mod:`mmldm_scale.media.hifi_gan`), or Griffin-Lim where it is None.

    Raises:
        UserError: there is no HiFi-GAN, or it is damaged, or it was trained on other mels than ``audio``'s.
    """
    return GriffinLim(audio) if path is None else HifiGan(Path(path), audio)


class GriffinLim:
    """Phases found by iteration, from linear magnitudes found by non-negative least squares."""

    INVERSION_STEPS = 200  # multiplicative updates of the mel inversion
    ITERATIONS = 64
    MOMENTUM = 0.99
    SEED = 0  # of the initial phases, the same for every spectrogram

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
        """Return the (B, samples) float32 waveforms of mel magnitudes (B, n_mels, T) in dB; works on the CPU."""
        sounds = [self._invert(one, samples) for one in decibels.detach().float().cpu()]
        return torch.stack(sounds).to(decibels.device)

    def _invert(self, decibels: torch.Tensor, samples: int) -> torch.Tensor:
        magnitude = self._linear(10 ** (decibels / 20))
        # Griffin-Lim centres frame t on sample t · hop. One more frame in front (and behind, for the end's sake) puts
        # its time zero half a hop before ours.
        magnitude = F.pad(magnitude, (1, 1), mode="replicate")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.SEED)
            sound = self.phases(magnitude)
        sound = sound[self.audio.hop_length // 2 :][:samples]
        return F.pad(sound, (0, samples - len(sound))).clamp(-1, 1)

    def _linear(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the (n_fft // 2 + 1, T) magnitudes >= 0 whose mels come closest to ``mel`` (n_mels, T).

        Lee and Seung's multiplicative updates: they keep the sign and, begun from the filters' own spread, the smooth
        spectra that plain least squares loses.
        """
        spread = self.filters @ mel  # (n_fft // 2 + 1, T)
        linear = spread.clone()
        for _ in range(self.INVERSION_STEPS):
            linear = linear * spread / (self.filters @ (self.filters.T @ linear)).clamp(min=1e-12)
        return linear
