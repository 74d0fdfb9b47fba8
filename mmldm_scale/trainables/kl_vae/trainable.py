"""The trainable "kl_vae": the KL-VAE's decoder fine-tuned on a data set's pictures, or a small KL-VAE from scratch.

With ``kl_vae`` it is the paper's preparation of each data set (section 4.6): a KL-VAE of natural images does not know
audio images, so its decoder is fine-tuned on the pictures of this set, with an L1 loss, LPIPS if its weights are given,
and a patch discriminator. Encoder and ``quant_conv`` do not change by a bit; neither do the latents, their scale and
everything encoded before. Latents are drawn from the posterior, as in latent-diffusion's own training. Without
``kl_vae`` a small one is trained from scratch, with the KL term as well, for use without a pretrained KL-VAE.

A sample is one picture: a frame of a clip, or a clip's audio image. The weights folder is of kind "kl_vae"; its
sub-folder ``vae`` is what diffusers loads as ``AutoencoderKL``.
"""

import copy
import functools
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import KLVAEConfig, MediaConfig
from mmldm_scale.media.audio_image import AudioImage, signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.models import lpips, pretrained
from mmldm_scale.models.autoencoder import kl_vae, patch_discriminator
from mmldm_scale.models.autoencoder.patch_discriminator import PatchDiscriminator
from mmldm_scale.models.autoencoder.stable_diffusion import VAE_FOLDER, WEIGHTS
from mmldm_scale.models.flop_counter import flops_of
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.trainables.clip_stream import BlankClips, Clips
from mmldm_scale.trainables.kl_vae import preview
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.trainables.kl_vae.dataset import PictureDataset
from mmldm_scale.trainables.kl_vae.loss import PictureReconstruction
from mmldm_scale.training.trainable import (
    Discriminator,
    PretrainedPart,
    StepInfo,
    StepOutline,
    Trainable,
    WeightsLayout,
    repeat_sample,
)

MEASURED_CLIPS = 16  # spread over the set; their latents' standard deviation sets the scaling factor


def build_trainable(config: KLVAETraining) -> Trainable:
    """Return the trainable of the KL-VAE of ``config`` on its clip shards.

    Raises:
        UserError: shards, KL-VAE or LPIPS's weights are missing, damaged or of another kind, or the pictures' size does
            not fit a network.
    """
    clips = Clips(config)
    vae = kl_vae.load(config.kl_vae) if config.kl_vae else kl_vae.build(config.model)
    _check_sizes(config, vae, clips.media.size)
    initial = copy.deepcopy(vae).cpu().float().eval()  # in float32; an engine casts the module's
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
        shard_sets=clips.samples.mixture.origins,
        flops_per_sample=_forward_flops(config, vae, clips.media.size),
        write_weights=functools.partial(_write_weights, initial, measured, clips.media),
        weights_layout=WeightsLayout(prefix="vae.", file=f"{VAE_FOLDER}/{WEIGHTS}.safetensors"),
        preview=functools.partial(preview.show, clips),
        quarantine=clips.samples.quarantine,
        term_weights=module.term_weights,
        discriminator=_discriminator(config),
        begin_step=module.begin_step,
        sets=clips.samples.mixture.counts,
        pretrained=_pretrained(config),
    )


def _pretrained(config: KLVAETraining) -> list[PretrainedPart]:
    advice = "the public code's is Stable Diffusion's, its decoder fine-tuned; --preset finetune kl_vae=DIR"
    parts = [PretrainedPart("KL-VAE", "kl_vae", config.kl_vae, advice)]
    return parts + ([PretrainedPart("LPIPS", "lpips", config.lpips, is_frozen=True)] if config.lpips else [])


def _check_sizes(config: KLVAETraining, vae: AutoencoderKL, size: int) -> None:
    """Raise UserError if pictures of ``size`` do not fit the KL-VAE, LPIPS or the discriminator."""
    factor = kl_vae.reduction(vae)
    if size % factor:
        levels = len(vae.config["block_out_channels"])
        key = config.kl_vae or "model.channels"
        raise UserError(f"{key}: {levels} levels divide sizes by {factor}; pictures must have a multiple, not {size}")
    if config.lpips and size < lpips.SMALLEST:
        raise UserError(f"lpips: the pictures' size is {size}; must be at least {lpips.SMALLEST}")
    least = patch_discriminator.smallest(config.discriminator)
    if config.adversarial.weight and size < least:
        layers = config.discriminator.layers
        raise UserError(f"discriminator.layers: {layers} layers need pictures of at least {least}, not {size}")


def outline(config: KLVAETraining, media: MediaConfig | None = None, manifest: Manifest | None = None) -> StepOutline:
    """Return a micro-step of the KL-VAE on the device "meta"; fine-tuning is outlined for Stable Diffusion's KL-VAE.

    Args:
        media: format of a clip; None: the default.
        manifest: of the set whose clips it is for, instead of ``media``.
    """
    media = manifest.media if manifest else media or MediaConfig()
    with torch.device("meta"):
        vae = kl_vae.build(KLVAEConfig() if config.kl_vae else config.model)
        module = PictureReconstruction(config, vae, AudioImage(media))
        discriminator = _discriminator(config)
    sample = PictureDataset(config, BlankClips(media), vae)[0]
    return StepOutline(
        module=module,
        batch=repeat_sample(sample, config.training.micro_batch),
        count_flops=functools.partial(_forward_flops, config, vae, media.size),
        term_weights=module.term_weights,
        begin_step=module.begin_step,
        discriminator=discriminator.module if discriminator else None,
        info=StepInfo(logged=True, adversarial=discriminator is not None),
    )


def _discriminator(config: KLVAETraining) -> Discriminator | None:
    if not config.adversarial.weight:
        return None
    loss = AdversarialLoss(PatchDiscriminator(config.discriminator), _only_fake, config.adversarial.loss)
    return Discriminator(loss, config.adversarial)


def _only_fake(_real: Tensor, fake: Tensor) -> list[Tensor]:
    return [fake]


def _write_weights(
    initial: AutoencoderKL, measured: list[Clip], media: MediaConfig, folder: Path, state: dict[str, Tensor]
) -> None:
    """Write the averaged ``state`` of a :class:`PictureReconstruction` as a weights folder of kind "kl_vae".

    Parameters that are not trained are those of ``initial``, the float32 KL-VAE that the run began with. The scaling
    factor of a KL-VAE from scratch is measured on the clips ``measured``; there are none when fine-tuning.
    """
    vae = copy.deepcopy(initial)
    averaged = {name.removeprefix("vae."): tensor for name, tensor in state.items()}
    vae.load_state_dict({**vae.state_dict(), **averaged})
    if measured:
        vae.register_to_config(scaling_factor=_scaling_factor(vae, measured, media))
    kl_vae.save(folder, vae)


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, clips: list[Clip], media: MediaConfig) -> float:
    """Return 1 / the standard deviation of the latents of one frame and the audio image of each clip."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, audio = signals(clips, AudioImage(media), device)
    vae.to(device)  # type: ignore[arg-type]  # diffusers wraps the method untyped
    latents = kl_vae.encode(vae, torch.cat([frames[:, 0], audio])) / vae.config["scaling_factor"]  # (2·N, c, s, s)
    vae.to("cpu")  # type: ignore[arg-type]  # likewise
    return 1.0 / latents.std().item()


def _forward_flops(config: KLVAETraining, vae: AutoencoderKL, size: int) -> float:
    """Return a picture's forward FLOPs in the KL-VAE; training takes three times as many.

    A third of a frozen encoder is counted, since it runs forward only. LPIPS and the discriminator are not counted.
    """
    side = size // kl_vae.reduction(vae)
    with torch.device("meta"):
        model = AutoencoderKL.from_config(vae.config)
        picture = torch.empty(1, 3, size, size)
        latents = torch.empty(1, vae.config["latent_channels"], side, side)
    encoding = flops_of(lambda: model.encode(picture))
    total = encoding + flops_of(lambda: model.decode(latents))
    return total - (encoding * 2 / 3 if config.kl_vae else 0)
