"""Autoencoders of the smallest size, with random weights, for clips of 4 frames of 16×16 pixels."""

from pathlib import Path

import torch

from mmldm_scale.config import AudioImageConfig, AutoencoderConfig, EncoderConfig, KLVAEConfig, MediaConfig, UNetConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder

MEDIA = MediaConfig(frames=4, size=16, audio=AudioImageConfig(sample_rate=8000, n_mels=16, f_max=4000))


def save_autoencoder(folder: Path, seed: int = 0, media: MediaConfig = MEDIA, **options: object) -> Path:
    """Write the weights folder ``folder`` with the weights of ``seed``, and return it; ``options``: of its model."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(
        latent_channels=4,
        audio_encoder=EncoderConfig(width=8, multipliers=[1, 2, 2], blocks=1, heads=2),
        video_encoder=EncoderConfig(width=8, multipliers=[1, 2], blocks=1, heads=2),
        semantic_width=8,
        decoder=UNetConfig(width=8, multipliers=[1, 2], blocks=1, attention=[True, False], heads=2),
        **options,
    )
    model = Autoencoder(config, media, kl_vae.build(KLVAEConfig(channels=[8, 8], blocks=1)))
    model.save_pretrained(folder)
    return folder
