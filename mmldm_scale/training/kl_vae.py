"""The task "kl_vae": a small KL-VAE from scratch, for when no pretrained one is at hand.

A sample is one picture: a frame of a clip, or a clip's audio image. The weights folder is of kind "kl_vae"
and holds, in its sub-folder ``vae``, what any diffusers program loads as ``AutoencoderKL``.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale import counter
from mmldm_scale.config import KLVAETraining
from mmldm_scale.errors import UserError
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.training.clip_data import Clips, signals, strips
from mmldm_scale.training.task import Preview, Task

MEASURED_CLIPS = 16  # whose latents' standard deviation sets the scaling factor
SHOWN_CLIPS = 4


def build_task(config: KLVAETraining) -> Task:
    """Return the task that trains the KL-VAE of ``config`` on its clip shards.

    Raises:
        UserError: the shards are missing, damaged or of another kind, or the pictures' size does not fit the model.
    """
    dataset = PictureDataset(config)
    module = PictureReconstruction(config, AudioImage(dataset.clips.media))
    return Task(
        name="kl_vae",
        module=module,
        dataset=dataset,
        inputs={"shards": dataset.clips.samples.mixture.fingerprint},
        flops_per_sample=_forward_flops(config, dataset.clips.media.size),
        write_weights=functools.partial(_write_weights, config, dataset.clips),
        preview=functools.partial(_show, dataset.clips),
        quarantine=dataset.clips.samples.quarantine,
    )


class PictureReconstruction(nn.Module):
    """The KL-VAE with its loss: a batch of :class:`PictureDataset` in, each sample's losses out."""

    def __init__(self, config: KLVAETraining, audio_image: AudioImage) -> None:
        super().__init__()
        self.vae = kl_vae.build(config.model)
        self.audio_image = audio_image
        self.kl_weight = config.kl_weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss", "loss/reconstruction" (mean squared error) and "loss/kl" (nats), each (B,).

        Args:
            batch: "frame" (B, S, S, 3) uint8, "waveform" (B, N), "audio" (B,) boolean, whether the picture is the audio
                image and not the frame, and "noise" (B, c, s, s).
        """
        audio, frames = self.audio_image.encode(batch["waveform"]), to_signal(batch["frame"])
        pictures = torch.where(batch["audio"].view(-1, 1, 1, 1), audio, frames)  # (B, 3, S, S)
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # thrice as fast at few channels on a CPU
        moments = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        posterior = Gaussian(moments.mean, moments.logvar)
        restored = self.vae.decode(posterior.sample(batch["noise"])).sample.float()
        error, kl = (restored - pictures).square().mean(dim=(1, 2, 3)), posterior.kl()
        return {"loss": error + self.kl_weight * kl, "loss/reconstruction": error, "loss/kl": kl}


class PictureDataset:
    """Training samples by global position, as :class:`PictureReconstruction` takes them."""

    def __init__(self, config: KLVAETraining) -> None:
        self.config = config
        self.clips = Clips(config)
        factor, size = 2 ** (len(config.model.channels) - 1), self.clips.media.size
        if size % factor:
            raise UserError(
                f"model.channels: {len(config.model.channels)} levels divide sizes by {factor}; {size} is no multiple"
            )
        self.noise_shape = (config.model.latent_channels, size // factor, size // factor)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``; see :meth:`PictureReconstruction.forward` for its parts."""
        random = counter.generator(self.config.training.seed, "kl_vae", position)
        audio = random.random() < self.config.audio_share
        clip = self.clips.clip(position, [int(random.integers(self.clips.media.frames))])
        return {
            "frame": torch.from_numpy(clip.frames[0]),
            "waveform": torch.from_numpy(clip.waveform),
            "audio": torch.tensor(audio),
            "noise": torch.from_numpy(random.standard_normal(self.noise_shape, dtype=np.float32)),
        }


def _write_weights(config: KLVAETraining, clips: Clips, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`PictureReconstruction` as a weights folder of kind "kl_vae"."""
    vae = kl_vae.build(config.model).eval()
    vae.load_state_dict({name.removeprefix("vae."): tensor for name, tensor in state.items()})
    vae.register_to_config(scaling_factor=_scaling_factor(vae, clips))
    kl_vae.save(folder, vae)


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, clips: Clips) -> float:
    """Return 1 / the standard deviation of latents: of one frame and the audio image of clips all over the set."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, audio = signals(clips.spread(MEASURED_CLIPS), AudioImage(clips.media), device)
    latents = kl_vae.encode(vae.to(device), torch.cat([frames[:, 0], audio])) / vae.config.scaling_factor
    vae.to("cpu")
    return 1.0 / latents.std().item()


def _show(clips: Clips, module: nn.Module, preview: Preview) -> None:
    """Show pictures above what the KL-VAE makes of them."""
    device = next(module.parameters()).device
    frames, audio = signals(clips.spread(SHOWN_CLIPS), module.audio_image, device)
    pictures = torch.cat([frames[:, 0], audio])
    restored = kl_vae.decode(module.vae, kl_vae.encode(module.vae, pictures))
    preview.image("kl_vae/original_above_restored", strips([pictures, restored]))


def _forward_flops(config: KLVAETraining, size: int) -> float:
    with torch.device("meta"):
        vae = kl_vae.build(config.model)
        picture = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        vae(picture)
    return flops.get_total_flops()
