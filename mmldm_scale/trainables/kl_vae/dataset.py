"""The KL-VAE's training samples by global position: frames and audio images of clips."""

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from mmldm_scale.common import rng
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.trainables.clip_stream import ClipSource
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training.trainable import Batch


class PictureDataset:
    """Training samples by global position, for :class:`~.loss.PictureReconstruction`."""

    def __init__(self, config: KLVAETraining, clips: ClipSource, vae: AutoencoderKL) -> None:
        self.config, self.clips = config, clips
        side = clips.media.size // kl_vae.reduction(vae)
        self.noise_shape = (vae.config["latent_channels"], side, side)  # (c, s, s)

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``; :meth:`PictureReconstruction.forward` describes its entries."""
        random = rng.generator(self.config.training.seed, "kl_vae", position)
        audio = random.random() < self.config.audio_share
        clip = self.clips.clip(position, [int(random.integers(self.clips.media.frames))])
        return {
            "frame": torch.from_numpy(clip.frames[0]),
            "waveform": torch.from_numpy(clip.waveform),
            "audio": torch.tensor(audio),
            "noise": torch.from_numpy(random.standard_normal(self.noise_shape, dtype=np.float32)),
        }
