"""The trainable "dit": the diffusion transformer, trained on latent shards (sections 3.2 and 3.3).

Its samples are :mod:`~mmldm_scale.trainables.dit.dataset`'s, its loss is :mod:`~mmldm_scale.trainables.dit.loss`'s. The
weights folder holds everything that sampling needs to know: sizes, schedule, statistics, classes, what a clip is, and
which autoencoder decodes the latents.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common.device import training_device
from mmldm_scale.common.modalities import as_pair
from mmldm_scale.common.portable_paths import portable
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import contrastive
from mmldm_scale.diffusion.normalise import Statistics
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.dit import LAYOUT, latent_shapes
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.shards.latents import PARTS, LatentSample, parts_of
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.trainables.dit import preview
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.context import null_context
from mmldm_scale.trainables.dit.dataset import LatentDataset, SampleMaker, stored_shapes
from mmldm_scale.trainables.dit.loss import NoisePrediction
from mmldm_scale.training.data import validation_set
from mmldm_scale.training.data.validation_set import ValidationSamples
from mmldm_scale.training.trainable import Batch, StepOutline, Trainable, WeightsLayout, repeat_sample

ShowSamples = Callable[[dict[str, Tensor], Preview], Iterator[None]]


def build_trainable(config: DiTTraining) -> Trainable:
    """Return the trainable of the DiT of ``config`` on its latent shards.

    Raises:
        UserError: the shards are missing, damaged or of another kind; the attention backend cannot work;
            ``preview.autoencoder`` is no autoencoder.
    """
    head_width, dtype = config.model.width // config.model.heads, DTYPES[config.training.precision]
    choose_backend(config.model.attention, training_device(), dtype, head_width)  # raises now if it cannot work
    dataset = LatentDataset(config)
    mixture = dataset.samples.mixture
    shapes = as_pair(dataset.shapes)
    module = NoisePrediction(config, *shapes, len(dataset.classes))
    description = _description(config, mixture, dataset.classes)
    write_weights = functools.partial(_write_weights, description)
    validation = _validation(config, dataset) if config.validation else None
    return Trainable(
        name="dit",
        module=module,
        dataset=dataset,
        inputs={"shards": mixture.fingerprint, **dataset.inputs},
        shard_sets=mixture.origins,
        flops_per_sample=forward_flops(config, *shapes),
        write_weights=write_weights,
        weights_layout=WeightsLayout(
            prefix="dit.",
            classes=dataset.classes,
            class_tensors=r"embed_class\.weight",
            differences=functools.partial(_differences, description),
        ),
        term_weights=module.term_weights,
        begin_step=module.begin_step,
        samples=_samples(config, mixture, write_weights, validation or dataset) if config.preview.samples else None,
        validation=validation,
        quarantine=dataset.samples.quarantine,
        startup_messages=[
            *dataset.startup_messages(),
            *preview.startup_messages(config, mixture.manifest.autoencoder.get("path", "")),
            *(validation.startup_messages if validation else []),
        ],
        sets=mixture.counts,
    )


def _samples(
    config: DiTTraining,
    mixture: Mixture,
    write_weights: preview.WriteWeights,
    conditions: ValidationSamples | LatentDataset,
) -> ShowSamples:
    """Return what shows samples, decoded by the autoencoder where it was when the latents were made.

    Args:
        conditions: the samples that a2v and v2a start from.
    """
    autoencoder = config.preview.autoencoder or mixture.manifest.autoencoder.get("path", "")
    located = dataclasses.replace(config, preview=dataclasses.replace(config.preview, autoencoder=autoencoder))
    return functools.partial(preview.show_samples, located, write_weights, _reader(conditions))


def outline(
    config: DiTTraining,
    audio_shape: Shape | None = AUDIO_SHAPE,
    video_shape: Shape | None = VIDEO_SHAPE,
    device: str = "meta",
    manifest: Manifest | None = None,
) -> StepOutline:
    """Return a micro-step of the DiT on latents of these shapes, (C, H, W), on ``device``.

    A model of one modality alone has that one's.

    Args:
        manifest: of the set whose latents it is for, instead of ``audio_shape`` and ``video_shape``.

    Raises:
        UserError: the set does not have the model's modalities.
    """
    if manifest is not None:
        audio_shape, video_shape = as_pair(stored_shapes(manifest, config.model.modalities))
    classes = int(config.context.kind == "class")  # their number hardly counts beside the model
    backend = config.model.attention if config.model.attention == "math" else "sdpa"  # "meta" has no other
    model = dataclasses.replace(config.model, attention=backend, compile=False)
    with torch.device(device):
        module = NoisePrediction(config, audio_shape, video_shape, classes, model)
    shapes = latent_shapes(config.model, audio_shape, video_shape)
    unit: dict[str, Statistics] = {
        name: {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]} for name, shape in shapes.items()
    }
    context = null_context(config.context, config.model)
    maker = SampleMaker(config, shapes, unit, context)
    zeros = {part: np.zeros(shapes[PARTS[part]], np.float16) for part in parts_of(shapes)}
    latents = LatentSample.of({part: (array, array) for part, array in zeros.items()})
    sample = maker.make(0, latents, context, other=latents if config.contrastive.weight else None, displaced=latents)
    return StepOutline(
        module=module,
        batch=repeat_sample(sample, config.training.micro_batch, device),
        count_flops=functools.partial(forward_flops, config, audio_shape, video_shape),
        term_weights=module.term_weights,
        begin_step=module.begin_step,
        transformer_width=config.model.width,
    )


def forward_flops(config: DiTTraining, audio_shape: Shape | None, video_shape: Shape | None) -> float:
    """Return a sample's forward FLOPs, of which training takes three times as many; all passes are counted.

    A mean flow's target takes one forward pass, a third of what training takes.
    """
    passes = contrastive.PASSES if config.contrastive.weight else 1 + bool(config.diffusion.mean_flow) / 3
    return passes * dit_macs(config.model, audio_shape, video_shape).flops


def _reader(samples: ValidationSamples | LatentDataset) -> Callable[[int], Batch]:
    """Return a function that reads one of ``samples`` by its number, again from the first behind the last."""
    count = len(samples) if isinstance(samples, ValidationSamples) else len(samples.samples.mixture)
    return lambda number: samples.__getitems__([number % count])[0]


def _validation(config: DiTTraining, dataset: LatentDataset) -> ValidationSamples:
    """Return the held-out samples, normalised as the training samples are."""
    context = dataclasses.replace(config.context, dropout=0.0)
    settings = validation_set.settings(config, config.validation, flip=0.0, context=context)
    learned = dataset.samples.mixture
    held_out = LatentDataset(settings, dataset.classes, learned.statistics)
    count, steps = config.training.validation_samples, config.diffusion.steps
    return ValidationSamples(held_out, held_out.samples.mixture, learned, count, steps, config.shared_recordings)


def _write_weights(description: dict[str, Any], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`NoisePrediction` as a weights folder of kind "dit"."""
    weights = {name.removeprefix("dit."): tensor for name, tensor in state.items()}
    pretrained.save(folder, "dit", description, weights)


def _differences(description: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Return, as parts of a line, what in ``stored``, other weights' description, is not as in ``description``."""
    parts = []
    for key, name in (("context", "kind"), ("diffusion", "prediction")):
        there, here = stored.get(key, {}).get(name, "none"), description[key][name]
        if there != here:
            parts.append(f"{key}.{name}={there}, not {here}")
    if stored.get("autoencoder", {}).get("fingerprint") != description["autoencoder"].get("fingerprint"):
        parts.append("latents of another autoencoder")
    if stored.get("statistics") != description["statistics"]:
        parts.append("other means and standard deviations of latents")
    return parts


def _description(config: DiTTraining, mixture: Mixture, classes: list[str]) -> dict[str, Any]:
    """Return the config.json of a weights folder: all that sampling needs besides the weights."""
    manifest = mixture.manifest
    return {
        "model": dataclasses.asdict(config.model),
        "diffusion": dataclasses.asdict(config.diffusion),
        "context": {"kind": config.context.kind, "classes": classes},
        "layout": LAYOUT,
        "audio_shape": manifest.audio_shape,
        "video_shape": manifest.video_shape,
        "statistics": mixture.statistics,
        "media": dataclasses.asdict(manifest.media),
        "autoencoder": {
            name: portable(value, Path(config.run)) if name == "path" else value
            for name, value in manifest.autoencoder.items()
        },
    }
