"""An autoencoder that runs in milliseconds, for the tests."""

import dataclasses
from collections.abc import Sequence

import torch

from mmldm_scale.config import AudioImageConfig, AutoencoderConfig, EncoderConfig, KLVAEConfig, MediaConfig, UNetConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder

AUDIO = AudioImageConfig(sample_rate=8000, n_fft=256, win_length=256, hop_length=100, n_mels=32, f_max=4000)
MEDIA = MediaConfig(frames=4, fps=10, size=32, audio=AUDIO)
KL_VAE = KLVAEConfig(channels=[8, 8, 8], blocks=1)
CONFIG = AutoencoderConfig(
    latent_channels=4,
    audio_encoder=EncoderConfig(width=8, multipliers=[1, 1, 2], blocks=1, heads=2),
    video_encoder=EncoderConfig(width=8, multipliers=[1, 2], blocks=1, heads=2),
    semantic_width=16,
    decoder=UNetConfig(width=8, multipliers=[1, 2], blocks=1, attention=[False, True], heads=2),
)


def build(seed: int = 0, classes: Sequence[str] = (), **options: object) -> Autoencoder:
    """Return one with random weights, its zero-initialised layers still zero; ``options`` replace those of CONFIG."""
    torch.manual_seed(seed)
    return Autoencoder(dataclasses.replace(CONFIG, **options), MEDIA, kl_vae.build(KL_VAE), classes).eval()


def opened(model: Autoencoder) -> Autoencoder:
    """Fill the zero-initialised layers, as training would."""
    for name, parameter in model.named_parameters():
        if not parameter.any() and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def clips(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random frames (B, F, 3, S, S) and audio images (B, 3, S, S) in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.rand(count, MEDIA.frames, 3, MEDIA.size, MEDIA.size, generator=random) * 2 - 1
    return frames, torch.rand(count, 3, MEDIA.size, MEDIA.size, generator=random) * 2 - 1


def latents(model: Autoencoder, count: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random perceptual latents (B, C, H_a, W_a) and (B, C, H_v, W_v)."""
    random = torch.Generator().manual_seed(seed)
    audio, video = (torch.randn(count, *shape, generator=random) for shape in (model.audio_shape, model.video_shape))
    return audio, video
