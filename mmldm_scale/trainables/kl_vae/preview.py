"""Pictures above what the KL-VAE makes of them, shown while it trains (``training.preview_every``)."""

import torch
from torch import nn

from mmldm_scale.media.audio_image import signals
from mmldm_scale.media.pixels import strips
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.clip_stream import Clips

SHOWN_CLIPS = 4


def show(clips: Clips, module: nn.Module, preview: Preview) -> None:
    """Show pictures above what the KL-VAE makes of them."""
    device = next(module.parameters()).device
    frames, audio = signals(clips.spread(SHOWN_CLIPS), module.audio_image, device)
    pictures = torch.cat([frames[:, 0], audio])
    restored = kl_vae.decode(module.vae, kl_vae.encode(module.vae, pictures))
    preview.image("kl_vae/original_above_restored", strips([pictures, restored]))
