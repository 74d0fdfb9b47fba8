"""Pictures and the KL-VAE's reconstructions of them, shown while it trains (``training.preview_every``)."""

import torch

from mmldm_scale.media.audio_image import signals
from mmldm_scale.media.pixels import strips
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.clip_stream import Clips
from mmldm_scale.trainables.kl_vae.loss import PictureReconstruction

SHOWN_CLIPS = 4  # one frame and the audio image of each


def show(clips: Clips, module: PictureReconstruction, preview: Preview) -> None:
    """Show one picture strip: frames and audio images of a few clips above the KL-VAE's reconstructions of them."""
    device = next(module.parameters()).device
    frames, audio = signals(clips.spread(SHOWN_CLIPS), module.audio_image, device)
    pictures = torch.cat([frames[:, 0], audio])  # (2·N, 3, S, S)
    restored = kl_vae.decode(module.vae, kl_vae.encode(module.vae, pictures))
    preview.image("kl_vae/original_above_restored", strips([pictures, restored]))
