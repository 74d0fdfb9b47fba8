"""An autoencoder that runs in milliseconds, for the tests."""

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


def build(seed: int = 0) -> Autoencoder:
    """Return one with random weights, its zero-initialised layers still zero."""
    torch.manual_seed(seed)
    return Autoencoder(CONFIG, MEDIA, kl_vae.build(KL_VAE)).eval()


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
