"""The trainable "kl_vae": the KL-VAE's decoder fine-tuned on a data set's pictures, or a small KL-VAE from scratch.

With ``kl_vae`` it is the paper's preparation of each data set (section 4.6): a KL-VAE of natural images does not know
audio images, so its decoder learns this set's pictures: from L1, LPIPS where its weights are given, and a discriminator
of patches. Encoder and ``quant_conv`` stay as they are to the bit, and so do the latents, their scale and all that was
encoded before. Latents are drawn from the posterior, as they are in latent-diffusion's own training. Without ``kl_vae``
a small one is trained from scratch, with the KL term as well, for when no pretrained one is at hand.

A sample is one picture: a frame of a clip, or a clip's audio image. The weights folder is of kind "kl_vae" and holds,
in its sub-folder ``vae``, what any diffusers program loads as ``AutoencoderKL``.
"""

import copy
import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.common import rng
from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage, signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import strips, to_signal
from mmldm_scale.models import lpips, pretrained
from mmldm_scale.models.autoencoder import kl_vae, patch_discriminator
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.models.autoencoder.patch_discriminator import PatchDiscriminator
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.trainables.clip_stream import Clips
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training.trainable import Discriminator, Preview, StepInfo, Trainable

MEASURED_CLIPS = 16  # all over the set, whose latents' standard deviation sets the scaling factor
SHOWN_CLIPS = 4
DECODER = ("decoder.", "post_quant_conv.")  # names of what fine-tuning trains


def build_trainable(config: KLVAETraining) -> Trainable:
    """Return the trainable that trains the KL-VAE of ``config`` on its clip shards.

    Raises:
        UserError: shards, KL-VAE or LPIPS's weights are missing, damaged or of another kind, or the pictures' size does
            not fit the model.
    """
    clips = Clips(config)
    vae = kl_vae.load(config.kl_vae) if config.kl_vae else kl_vae.build(config.model)
    _check_sizes(config, vae, clips.media.size)
    whole = copy.deepcopy(vae).cpu().float().eval()  # an engine casts the module's
    module = PictureReconstruction(config, vae, AudioImage(clips.media))
    measured = [] if config.kl_vae else clips.spread(MEASURED_CLIPS)
    inputs = {"shards": clips.samples.mixture.fingerprint}
    if config.kl_vae:
        inputs["kl_vae"] = pretrained.fingerprint(kl_vae.find(Path(config.kl_vae)))
    if config.lpips:
        inputs["lpips"] = sha256(Path(config.lpips))
    return Trainable(
        name="kl_vae",
        module=module,
        dataset=PictureDataset(config, clips, vae),
        inputs=inputs,
        flops_per_sample=_forward_flops(config, vae, clips.media.size),
        write_weights=functools.partial(_write_weights, whole, measured, clips.media),
        preview=functools.partial(_show, clips),
        quarantine=clips.samples.quarantine,
        weights=module.weights,
        discriminator=_discriminator(config),
        begin_step=module.begin_step,
    )


class PictureReconstruction(nn.Module):
    """The KL-VAE with its loss: a batch of :class:`PictureDataset` in, each sample's losses out.

    ``weights`` says how much each term counts in "loss": "reconstruction", "kl" from scratch, "lpips" where given.
    """

    def __init__(self, config: KLVAETraining, vae: AutoencoderKL, audio_image: AudioImage) -> None:
        super().__init__()
        self.vae, self.audio_image = vae, audio_image
        self.fine_tuning = bool(config.kl_vae)
        if self.fine_tuning:
            for name, parameter in vae.named_parameters():
                parameter.requires_grad_(name.startswith(DECODER))
        self.error = torch.abs if config.reconstruction == "l1" else torch.square
        self.lpips = lpips.load_lpips(config.lpips) if config.lpips else None
        self.weights = {"reconstruction": 1.0}
        if not self.fine_tuning:
            self.weights["kl"] = config.kl_weight
        if self.lpips:
            self.weights["lpips"] = config.lpips_weight
        self.step = StepInfo(samples_seen=0, logged=False, adversarial=False)

    def begin_step(self, step: StepInfo) -> None:
        """Take note of the optimizer step that begins."""
        self.step = step

    def forward(self, batch: dict[str, Tensor]) -> dict:
        """Return "loss" and the terms it is made of, each (B,).

        "term/reconstruction" is the mean absolute or squared error, "term/kl" is in nats, "term/lpips" LPIPS. With a
        discriminator there are "exhibits", each picture and its restoration, both (B, 1, 3, S, S); where the step is
        logged, "through" names the restored pictures.

        Args:
            batch: "frame" (B, S, S, 3) uint8, "waveform" (B, N), "audio" (B,) boolean, whether the picture is the audio
                image and not the frame, and "noise" (B, c, s, s).
        """
        audio, frames = self.audio_image.encode(batch["waveform"]), to_signal(batch["frame"])
        pictures = torch.where(batch["audio"].view(-1, 1, 1, 1), audio, frames)  # (B, 3, S, S)
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # thrice as fast at few channels on a CPU
        posterior = self._posterior(pictures)
        restored = self.vae.decode(posterior.sample(batch["noise"])).sample.float()
        terms = self._terms(pictures, restored, posterior)
        values: dict = {f"term/{name}": term for name, term in terms.items()}
        values["loss"] = sum(self.weights[name] * term for name, term in terms.items())
        if self.step.adversarial:
            weight = torch.ones_like(values["loss"])
            values["exhibits"] = {"real": pictures[:, None], "fake": restored[:, None], "weight": weight}
        if self.step.logged:
            values["through"] = {"pictures": (restored,)}
        return values

    def _posterior(self, pictures: Tensor) -> Gaussian:
        """Return what the encoder says of ``pictures``, without gradients where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fine_tuning):
            moments = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        return Gaussian(moments.mean, moments.logvar)

    def _terms(self, pictures: Tensor, restored: Tensor, posterior: Gaussian) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each (B,)."""
        terms = {"reconstruction": self.error(restored - pictures).mean(dim=(1, 2, 3))}
        if not self.fine_tuning:
            terms["kl"] = posterior.kl()
        if self.lpips:
            terms["lpips"] = self.lpips(restored, pictures)
        return terms


class PictureDataset:
    """Training samples by global position, as :class:`PictureReconstruction` takes them."""

    def __init__(self, config: KLVAETraining, clips: Clips, vae: AutoencoderKL) -> None:
        self.config, self.clips = config, clips
        side = clips.media.size // kl_vae.reduction(vae)
        self.noise_shape = (vae.config.latent_channels, side, side)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``; see :meth:`PictureReconstruction.forward` for its parts."""
        random = rng.generator(self.config.training.seed, "kl_vae", position)
        audio = random.random() < self.config.audio_share
        clip = self.clips.clip(position, [int(random.integers(self.clips.media.frames))])
        return {
            "frame": torch.from_numpy(clip.frames[0]),
            "waveform": torch.from_numpy(clip.waveform),
            "audio": torch.tensor(audio),
            "noise": torch.from_numpy(random.standard_normal(self.noise_shape, dtype=np.float32)),
        }


def _check_sizes(config: KLVAETraining, vae: AutoencoderKL, size: int) -> None:
    """Raise UserError if pictures of ``size`` do not fit the KL-VAE, LPIPS or the discriminator."""
    factor = kl_vae.reduction(vae)
    if size % factor:
        levels = len(vae.config.block_out_channels)
        key = config.kl_vae or "model.channels"
        raise UserError(f"{key}: {levels} levels divide sizes by {factor}; {size} is no multiple")
    if config.lpips and size < lpips.SMALLEST:
        raise UserError(f"lpips: needs pictures of at least {lpips.SMALLEST}; those of the shards are {size}")
    least = patch_discriminator.smallest(config.discriminator)
    if config.adversarial.weight and size < least:
        layers = config.discriminator.layers
        raise UserError(f"discriminator.layers: {layers} need pictures of at least {least}; those here are {size}")


def _discriminator(config: KLVAETraining) -> Discriminator | None:
    if not config.adversarial.weight:
        return None
    loss = AdversarialLoss(PatchDiscriminator(config.discriminator), _only_fake, config.adversarial.loss)
    return Discriminator(loss, config.adversarial)


def _only_fake(_real: Tensor, fake: Tensor) -> list[Tensor]:
    return [fake]


def _write_weights(
    whole: AutoencoderKL, measured: list[Clip], media: MediaConfig, folder: Path, state: dict[str, Tensor]
) -> None:
    """Write the averaged ``state`` of a :class:`PictureReconstruction` as a weights folder of kind "kl_vae".

    What is not trained stays as it is in ``whole``, the float32 KL-VAE that the run began with. One that began from
    scratch is scaled by its latents of the clips ``measured``.
    """
    vae = copy.deepcopy(whole)
    averaged = {name.removeprefix("vae."): tensor for name, tensor in state.items()}
    vae.load_state_dict({**vae.state_dict(), **averaged})
    if measured:
        vae.register_to_config(scaling_factor=_scaling_factor(vae, measured, media))
    kl_vae.save(folder, vae)


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, clips: list[Clip], media: MediaConfig) -> float:
    """Return 1 / the standard deviation of latents: of one frame and the audio image of each clip."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, audio = signals(clips, AudioImage(media), device)
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


def _forward_flops(config: KLVAETraining, vae: AutoencoderKL, size: int) -> float:
    """Return a picture's forward FLOPs in the KL-VAE, of which training takes three times as many.

    A frozen encoder runs forward only, so that a third of it is counted. The losses' own networks are not.
    """
    with torch.device("meta"):
        model = AutoencoderKL.from_config(vae.config)
        picture = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        latents = model.encode(picture).latent_dist.mean
        encoding = flops.get_total_flops()
        model.decode(latents)
    return flops.get_total_flops() - (encoding * 2 / 3 if config.kl_vae else 0)
