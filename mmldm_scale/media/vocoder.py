"""Mel magnitudes back into sound: HiFi-GAN where weights are given, Griffin-Lim where none are.

``load_vocoder(folder, audio)`` returns a function ``vocoder(decibels (B, n_mels, T), samples) -> (B, samples)``. Both
kinds keep the time grid of :mod:`mmldm_scale.media.audio_image` (frame t is centred on sample (t + 1/2) · hop), and
both are pure functions of each spectrogram: the same one sounds the same whatever batch it came in.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm_scale.config import AudioImageConfig
from mmldm_scale.errors import UserError
from mmldm_scale.media.audio_image import MIN_MAGNITUDE, mel_spectrogram

Vocoder = Callable[[torch.Tensor, int], torch.Tensor]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPES = ("speecht5_hifigan", "hifigan")  # in the config.json of newer and older versions of transformers


def load_vocoder(folder: str | None, audio: AudioImageConfig) -> Vocoder:
    """Return the HiFi-GAN in ``folder`` (transformers' SpeechT5HifiGan format), or Griffin-Lim where it is None.

    Raises:
        UserError: the folder is missing, holds no such model or only pickled weights, or was trained for another
            sample rate, hop length or number of mels than ``audio``'s.
    """
    return GriffinLim(audio) if folder is None else HifiGan(Path(folder), audio)


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


class HifiGan:
    """A pretrained HiFi-GAN generator."""

    def __init__(self, folder: Path, audio: AudioImageConfig) -> None:
        self.model = _load_hifi_gan(folder)
        config = self.model.config
        pairs = (
            ("sampling_rate", config.sampling_rate, "sample_rate", audio.sample_rate),
            ("model_in_dim", config.model_in_dim, "n_mels", audio.n_mels),
            ("product of upsample_rates", math.prod(config.upsample_rates), "hop_length", audio.hop_length),
        )
        for name, found, key, needed in pairs:
            if found != needed:
                raise UserError(f"{folder}: its {name} is {found}, but media.audio.{key} is {needed}; equal ones fit")

    @torch.inference_mode()
    def __call__(self, decibels: torch.Tensor, samples: int) -> torch.Tensor:
        """Return the (B, samples) float32 waveforms of mel magnitudes (B, n_mels, T) in dB, on their device."""
        model = self.model.to(decibels.device)
        mels = (decibels.float() * (math.log(10) / 20)).clamp(min=math.log(MIN_MAGNITUDE))  # natural logarithm
        with torch.autocast(decibels.device.type, enabled=False):
            sounds = [model(one.T) for one in mels]  # (T, n_mels) -> (T * hop,); one by one: no batch dependence
        sound = torch.stack(sounds)[:, :samples]
        return F.pad(sound, (0, samples - sound.shape[1])).clamp(-1, 1)


def _load_hifi_gan(folder: Path) -> SpeechT5HifiGan:
    """Return the model in ``folder``; every weight of it must be there, or UserError says what is wrong."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; a folder with {CONFIG} and {WEIGHTS} (no pickles) fits")
    try:
        values = json.loads((folder / CONFIG).read_text())
        kind = values.get("model_type")
        if kind not in MODEL_TYPES:
            raise UserError(f"{folder / CONFIG}: model_type is {kind!r}; {' or '.join(MODEL_TYPES)} fits")
        model = SpeechT5HifiGan(SpeechT5HifiGanConfig.from_dict(values))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a vocoder: {' '.join(str(error).split())[:300]}") from None
    return model.eval().requires_grad_(False)
