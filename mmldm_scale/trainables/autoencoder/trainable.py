"""The trainable "autoencoder": encoders, projectors and signal decoder over a frozen KL-VAE, trained on clip shards.

A sample is one clip. The encoders run once for it. The signal decoder learns to predict the noise in its audio image
and in a few of its frames; heads on the semantic features and a discriminator of decoded pictures add their terms
(section 3.1, Eq. 1 to 3; ``loss.py``). The clip and its random numbers are a pure function of (seed, position)
(``dataset.py``). The weights folder holds the KL-VAE as well, but not the discriminator.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from mmldm_scale.common.device import training_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import KLVAEConfig, MediaConfig
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.decoding import check_decoding
from mmldm_scale.models.autoencoder.discriminator import FRAMES, PICTURES, AudioVideoDiscriminator
from mmldm_scale.models.autoencoder.model import OLDER_MEANING, Autoencoder, save
from mmldm_scale.models.autoencoder.stable_diffusion import load_unet
from mmldm_scale.models.flop_counter import flops_of
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.trainables.autoencoder import preview
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.contrastive import contrastive_group, contrasts
from mmldm_scale.trainables.autoencoder.dataset import ClipDataset
from mmldm_scale.trainables.autoencoder.loss import Reconstruction, fake_arrangements
from mmldm_scale.trainables.clip_stream import BlankClips, Clips
from mmldm_scale.training.data import validation_set
from mmldm_scale.training.data.validation_set import ValidationSamples
from mmldm_scale.training.trainable import (
    Discriminator,
    PretrainedPart,
    StepInfo,
    StepOutline,
    Trainable,
    WeightsLayout,
    repeat_sample,
)

CLASSES = 9  # number of Landscape's classes, for outlines; it hardly changes memory or FLOPs
CLASS_TENSORS = (
    r"classification_head\.out\.(weight|bias)|decoder\.class_embeddings\.\w+\.weight"  # a row for each class
)
FROZEN = "autoencoder.kl_vae."  # prefix of the KL-VAE's weights among the module's


def build_trainable(config: AutoencoderTraining) -> Trainable:
    """Return the trainable of the autoencoder of ``config`` on its clip shards.

    Raises:
        UserError: shards, KL-VAE or U-Net are missing, damaged or of another kind; sizes or the contrastive loss's
            groups do not fit together; the validation clips are too few or are trained on.
    """
    check_decoding(config.preview, prefix="preview.")
    vae = kl_vae.load(config.kl_vae)
    clips = Clips(config, modalities=config.model.modalities)
    _check_frames(config, clips.media)
    frozen = {f"{FROZEN}{name}": tensor for name, tensor in vae.state_dict().items()}
    vae.to(training_device())  # type: ignore[arg-type]  # diffusers wraps the method untyped
    kl_vae.set_precision(vae, config.training.precision)
    module = Reconstruction(config, clips.media, vae, clips.classes, contrastive_group(config))
    if config.unet is not None:  # its fingerprint is not in inputs, since a resumed run does not use it
        for unet in module.autoencoder.decoder.unets.values():
            load_unet(cast(UNet2DConditionModel, unet), config.unet)
    validation = _validation(config, clips, module) if config.validation else None
    return Trainable(
        name="autoencoder",
        module=module,
        dataset=ClipDataset(config, clips, module.autoencoder),
        inputs={
            "shards": clips.samples.mixture.fingerprint,
            "kl_vae": pretrained.fingerprint(kl_vae.find(Path(config.kl_vae))),
        },
        shard_sets=clips.samples.mixture.origins,
        flops_per_sample=forward_flops(config, module.autoencoder),
        write_weights=functools.partial(_write_weights, module.autoencoder, frozen),
        weights_layout=WeightsLayout(
            prefix="autoencoder.",
            other_parts=("kl_vae.",),
            classes=module.autoencoder.classes,
            class_tensors=CLASS_TENSORS,
            differences=functools.partial(_differences, module.autoencoder),
        ),
        term_weights=module.term_weights,
        begin_step=module.begin_step,
        preview=functools.partial(_show, config, clips),
        validation=validation,
        quarantine=clips.samples.quarantine,
        discriminator=_discriminator(config),
        startup_messages=validation.startup_messages if validation else [],
        sets=clips.samples.mixture.counts,
        pretrained=[
            PretrainedPart("KL-VAE", "kl_vae", config.kl_vae, is_frozen=True),
            PretrainedPart(
                "U-Net of the signal decoder",
                "unet",
                config.unet or "",
                "the public code's is Stable Diffusion's; unet=DIR",
            ),
        ],
    )


def outline(
    config: AutoencoderTraining,
    media: MediaConfig | None = None,
    classes: int = CLASSES,
    kl_vae_config: KLVAEConfig | None = None,
    device: str = "meta",
    manifest: Manifest | None = None,
) -> StepOutline:
    """Return a micro-step of the autoencoder on ``device``.

    It is a logged step in which the discriminator, if there is one, takes part: such steps use most memory.

    Args:
        media: format of a clip; None: the default.
        classes: number of classes of the data set.
        kl_vae_config: of the KL-VAE; None: Stable Diffusion's.
        manifest: of the set whose clips it is for, instead of ``media`` and ``classes``.
    """
    if manifest is not None:
        media, classes = manifest.media, len(manifest.classes)
    media, micro_batch = media or MediaConfig(), config.training.micro_batch
    with torch.device(device):
        vae = kl_vae.build(kl_vae_config or KLVAEConfig())
        kl_vae.set_precision(vae, config.training.precision)
        group = micro_batch if contrasts(config) else 0  # clips of other processes use little of this one's memory
        module = Reconstruction(config, media, vae, [""] * classes, group)
        discriminator = _discriminator(config)
    sample = ClipDataset(config, BlankClips(media, config.model.modalities), module.autoencoder)[0]
    return StepOutline(
        module=module,
        batch=repeat_sample(sample, micro_batch, device),
        count_flops=functools.partial(forward_flops, config, module.autoencoder),
        term_weights=module.term_weights,
        begin_step=module.begin_step,
        discriminator=discriminator.module if discriminator else None,
        frozen=vae,
        info=StepInfo(logged=True, adversarial=discriminator is not None),
        samples_together=(config.contrastive_batch or config.training.global_batch) if contrasts(config) else 1,
    )


def _validation(config: AutoencoderTraining, clips: Clips, module: Reconstruction) -> ValidationSamples:
    """Return the validation clips, in whole groups of the clips that the contrastive loss compares."""
    settings = validation_set.settings(config, config.validation, flip=0.0, condition_dropout=0.0)
    held_out = Clips(settings, clips.classes, config.model.modalities)
    dataset = ClipDataset(settings, held_out, module.autoencoder)
    mixtures = held_out.samples.mixture, clips.samples.mixture
    count, group = config.training.validation_samples, max(1, module.group)
    return ValidationSamples(dataset, *mixtures, count, dataset.steps, config.shared_recordings, group)


def _show(config: AutoencoderTraining, clips: Clips, module: nn.Module, writer: Preview) -> None:
    """Show clips and their reconstructions."""
    assert isinstance(module, Reconstruction)
    preview.show(config.preview, clips, module.autoencoder, module.audio_image, writer)


def _discriminator(config: AutoencoderTraining) -> Discriminator | None:
    adversarial = config.adversarial
    if not adversarial.weight:
        return None
    network = AudioVideoDiscriminator(config.discriminator, _judged(config))
    return Discriminator(AdversarialLoss(network, fake_arrangements, adversarial.loss), adversarial)


def _judged(config: AutoencoderTraining) -> int:
    """Return how many pictures the discriminator judges together: two frames, and the audio image."""
    return PICTURES if "audio" in config.model.modalities else FRAMES


def _check_frames(config: AutoencoderTraining, media: MediaConfig) -> None:
    """Raise UserError if a step has too few frames of a clip for the discriminator."""
    count = min(config.frames_per_clip, media.frames)
    if config.adversarial.weight and count < 2:
        raise UserError(
            f"frames_per_clip: the discriminator compares two frames of a clip, but a step has {count}; use clips of "
            "at least 2 frames and frames_per_clip=2, or adversarial.weight=0"
        )


def _write_weights(model: Autoencoder, frozen: dict[str, Tensor], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`Reconstruction`, and the KL-VAE, as a weights folder."""
    weights = {name.removeprefix("autoencoder."): tensor for name, tensor in {**state, **frozen}.items()}
    save(folder, model.config, model.media, model.kl_vae, model.classes, weights)


def _differences(model: Autoencoder, stored: dict[str, Any]) -> list[str]:
    """Return, as parts of a line, what the tensors of ``stored``, other weights' description, belonged to otherwise.

    Such differences leave the tensors' shapes as they are: where features are added, and what a clip is.
    """
    older = OLDER_MEANING["decoder"]["features"]
    there = {"model.decoder.features": stored.get("model", {}).get("decoder", {}).get("features", older)}
    here = {"model.decoder.features": model.config.decoder.features}
    for values, media in ((there, stored.get("media", {})), (here, dataclasses.asdict(model.media))):
        values |= {f"media.{key}": value for key, value in media.items() if key != "audio"}
        values |= {f"media.audio.{key}": value for key, value in media.get("audio", {}).items()}
    return [f"{key}={there[key]}, not {here[key]}" for key in here if there.get(key, here[key]) != here[key]]


def forward_flops(config: AutoencoderTraining, model: Autoencoder) -> float:
    """Return a sample's forward FLOPs; training takes three times as many.

    Partial passes are counted in thirds (a forward pass, a gradient of the inputs, a gradient of the weights): the
    KL-VAE's encoder runs forward only. The discriminator is counted as if it took part from the first step. For the
    model's adversarial term, the KL-VAE's decoder and the discriminator run forward and back to their inputs; with
    ``real_pictures: kl_vae`` the KL-VAE's decoder also runs forward on real pictures. The discriminator's own loss, on
    real pictures and fakes, takes full passes.
    """
    media, count = model.media, min(config.frames_per_clip, model.media.frames)
    judged, total = _judged(config), media.frames * ("video" in model.modalities) + ("audio" in model.modalities)
    with torch.device("meta"):
        twin = Autoencoder(model.config, media, AutoencoderKL.from_config(model.kl_vae.config), model.classes)
        twin.requires_grad_(False)
        network = AudioVideoDiscriminator(config.discriminator, judged)
        pictures = torch.empty(judged, 3, media.size, media.size)
        conditioned = media.frames if model.config.decoder.estimate else count  # frames with a condition
        targets, times = torch.empty(1, conditioned, dtype=torch.long), torch.empty(count, dtype=torch.long)
        noisy = torch.empty(max(count, judged), *model.noise_shape)

    def train() -> None:
        """Decode one clip's target frames and audio image from its latents, as a step of training does."""
        means = twin.posteriors_of(noisy[:1].expand(1, total, *model.noise_shape)).means
        conditions = dict(zip(twin.modalities, twin.conditions(*means, targets, twin.semantics(*means)), strict=True))
        if "audio" in conditions:
            twin.decoder(noisy[:1], times[:1], conditions["audio"])
        if "video" in conditions:
            rows = torch.empty(count, dtype=torch.long)
            twin.decoder(noisy[:count], times, conditions["video"].select(rows))

    flops = flops_of(train) + flops_of(lambda: twin.picture_latents(pictures[:1])) * total / 3
    if config.adversarial.weight:
        decoding = flops_of(lambda: twin.picture(noisy[:judged]))
        thirds = 3 if config.real_pictures == "kl_vae" else 2
        passes = 1 + len(fake_arrangements(pictures[None], pictures[None])) + 2 / 3
        flops += thirds / 3 * decoding + passes * flops_of(lambda: network(pictures[None]))
    return flops
