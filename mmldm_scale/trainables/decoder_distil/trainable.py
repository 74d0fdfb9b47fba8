"""The trainable "decoder-distil": a trained autoencoder's signal decoder learns to decode in few steps (ours).

A sample is one clip, as for the autoencoder; the loss is :mod:`~mmldm_scale.trainables.decoder_distil.loss`'s. The
weights folder is of kind "autoencoder": encoders, projectors, heads and KL-VAE are the teacher's, bit for bit, so that
it decodes the latents that the teacher made. Its config.json says which autoencoder that was and in which numbers of
steps the decoder decodes (:class:`~mmldm_scale.models.autoencoder.distillation.Distillation`).
"""

import dataclasses
import functools
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from mmldm_scale.common.device import training_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderConfig, DecodingConfig, KLVAEConfig, MediaConfig
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.autoencoder.model import Autoencoder, save
from mmldm_scale.models.flop_counter import flops_of
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.shards.manifest import Manifest, differences
from mmldm_scale.trainables.autoencoder import preview
from mmldm_scale.trainables.clip_stream import BlankClips, Clips
from mmldm_scale.trainables.decoder_distil.config import DecoderDistilTraining
from mmldm_scale.trainables.decoder_distil.dataset import ClipDataset
from mmldm_scale.trainables.decoder_distil.loss import DecoderDistillation
from mmldm_scale.training.data import validation_set
from mmldm_scale.training.data.validation_set import ValidationSamples
from mmldm_scale.training.trainable import PretrainedPart, StepOutline, Trainable, repeat_sample

CLASSES = 9  # number of Landscape's classes, for outlines; it hardly changes memory or FLOPs


def build_trainable(config: DecoderDistilTraining) -> Trainable:
    """Return the trainable that distils the signal decoder of ``config.autoencoder`` on the clip shards of ``config``.

    Raises:
        UserError: shards or autoencoder are missing, damaged or of another kind, or of another format of clips; the
            autoencoder is distilled already; the validation clips are too few or are trained on.
    """
    folder = pretrained.find(config.autoencoder, "autoencoder")
    if Distillation.read(folder) is not None:
        raise UserError(f"autoencoder={config.autoencoder}: is distilled already; give the one that taught it")
    model = Autoencoder.from_pretrained(folder)
    config.loss_weights.check(model.modalities)
    clips = Clips(config, model.classes, model.modalities)
    _check_clips(config, clips.media, model)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("decoder.")}
    module = DecoderDistillation(config, model)
    _place(config, module)
    fingerprint = pretrained.fingerprint(folder)
    guidance = config.teacher.audio_guidance, config.teacher.video_guidance
    distillation = Distillation(tuple(config.steps), fingerprint, *guidance, target=config.target)
    validation = _validation(config, clips, module) if config.validation else None
    return Trainable(
        name=config.trainable,
        module=module,
        dataset=ClipDataset(config, clips, model, len(module.times)),
        inputs={"shards": clips.samples.mixture.fingerprint, "autoencoder": fingerprint},
        shard_sets=clips.samples.mixture.origins,
        flops_per_sample=forward_flops(config, model),
        write_weights=functools.partial(_write_weights, model, frozen, distillation),
        begin_step=module.begin_step,
        preview=functools.partial(_show, config, clips),
        validation=validation,
        quarantine=clips.samples.quarantine,
        startup_messages=validation.startup_messages if validation else [],
        sets=clips.samples.mixture.counts,
        pretrained=[PretrainedPart("signal decoder and its teacher", "autoencoder", config.autoencoder)],
    )


def outline(config: DecoderDistilTraining, manifest: Manifest | None = None) -> StepOutline:
    """Return a micro-step of the distillation on the device "meta".

    It is for the autoencoder of ``config`` if there is one at that place, else for the paper's.

    Args:
        manifest: of the set whose clips it is for; None: the autoencoder's own format of clips.
    """
    training, classes = config.training, len(manifest.classes) if manifest else CLASSES
    with torch.device("meta"):
        if Path(config.autoencoder).exists():
            model = Autoencoder.from_description(pretrained.find(config.autoencoder, "autoencoder"))
        else:
            media = manifest.media if manifest else MediaConfig()
            model = Autoencoder(AutoencoderConfig(), media, kl_vae.build(KLVAEConfig()), [""] * classes)
        module = DecoderDistillation(config, model)
    frozen = nn.ModuleList([module.teacher, *module.frozen.values()]).to(DTYPES[training.precision])
    if training.precision == "fp16":
        model.kl_vae.float()
    sample = ClipDataset(config, BlankClips(model.media, model.modalities), model, len(module.times))[0]
    return StepOutline(
        module=module,
        batch=repeat_sample(sample, training.micro_batch),
        count_flops=functools.partial(forward_flops, config, model),
        begin_step=module.begin_step,
        frozen=frozen,
    )


def _place(config: DecoderDistilTraining, module: DecoderDistillation) -> None:
    """Bring what is not trained to the training's device and precision; the KL-VAE overflows float16."""
    device, dtype = training_device(), DTYPES[config.training.precision]
    module.teacher.to(device, dtype)
    for name, part in module.frozen.items():
        part.to(device) if name == "kl_vae" else part.to(device, dtype)
    kl_vae.set_precision(module.autoencoder.kl_vae, config.training.precision)


def _check_clips(config: DecoderDistilTraining, media: MediaConfig, model: Autoencoder) -> None:
    """Raise UserError unless the clips, of the format ``media``, are as those that ``model`` was trained on."""
    formats = dataclasses.asdict(media), dataclasses.asdict(model.media)
    if formats[0] != formats[1]:
        changes = "; ".join(differences(*formats, ("the clips", "the autoencoder")))
        raise UserError(f"shards: the format of the clips differs from that of {config.autoencoder} ({changes})")


def _validation(config: DecoderDistilTraining, clips: Clips, module: DecoderDistillation) -> ValidationSamples:
    """Return the held-out clips, with their places among the timesteps spread evenly."""
    model, places = module.autoencoder, len(module.times)
    settings = validation_set.settings(config, config.validation, flip=0.0)
    held_out = Clips(settings, model.classes, model.modalities)
    dataset = ClipDataset(settings, held_out, model, places)
    mixtures, count = (held_out.samples.mixture, clips.samples.mixture), config.training.validation_samples
    return ValidationSamples(dataset, *mixtures, count, places, config.shared_recordings)


def _show(config: DecoderDistilTraining, clips: Clips, module: nn.Module, writer: Preview) -> None:
    """Show clips and what the decoder makes of them in the most steps that it learns."""
    assert isinstance(module, DecoderDistillation)
    preview.show(DecodingConfig(steps=max(config.steps)), clips, module.autoencoder, module.audio_image, writer)


def _write_weights(
    model: Autoencoder,
    frozen: dict[str, Tensor],
    distillation: Distillation,
    folder: Path,
    state: dict[str, Tensor],
) -> None:
    """Write the averaged ``state`` of a :class:`DecoderDistillation` and all else of ``model`` as a weights folder."""
    weights = frozen | {name.removeprefix("autoencoder."): tensor for name, tensor in state.items()}
    save(folder, model.config, model.media, model.kl_vae, model.classes, weights, distillation)


def forward_flops(config: DecoderDistilTraining, model: Autoencoder) -> float:
    """Return a sample's forward FLOPs; training takes three times as many.

    Partial passes are counted in thirds, as for the autoencoder: what is frozen runs forward only.
    """
    media, count = model.media, min(config.frames_per_clip, model.media.frames)
    total = media.frames * ("video" in model.modalities) + ("audio" in model.modalities)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(model.kl_vae.config)
        twin = Autoencoder(model.config, media, vae, model.classes).requires_grad_(False)
        pictures, times = torch.empty(1, 3, media.size, media.size), torch.empty(count, dtype=torch.long)
        targets, noisy = torch.empty(1, count, dtype=torch.long), torch.empty(max(1, count), *model.noise_shape)
        latents = noisy[:1].expand(1, total, *model.noise_shape)
        means = twin.posteriors_of(latents).means
        semantics = twin.semantics(*means)

    def encode() -> None:
        twin.semantics(*twin.posteriors_of(latents).means)

    def conditions() -> dict[str, object]:
        return dict(zip(twin.modalities, twin.conditions(*means, targets, semantics), strict=True))

    def decode() -> None:
        if "audio" in made:
            twin.decoder(noisy[:1], times[:1], made["audio"])
        if "video" in made:
            twin.decoder(noisy[:count], times, made["video"])

    made = conditions()
    conditioning, decoding = flops_of(conditions), flops_of(decode)
    flops = conditioning + decoding + (flops_of(encode) + flops_of(lambda: twin.picture_latents(pictures)) * total) / 3
    if config.target == "teacher":
        guided = [getattr(config.teacher, f"{name}_guidance") > 1 for name in model.modalities]
        flops += (conditioning + config.teacher.steps * (1 + any(guided)) * decoding) / 3
    return flops
