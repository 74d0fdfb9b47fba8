"""The trainable "dit": the diffusion transformer, trained on latent shards (sections 3.2 and 3.3).

Its samples are :mod:`~mmldm_scale.trainables.dit.dataset`'s. The weights folder carries everything that sampling needs
to know: sizes, schedule, statistics, classes, what a clip is, and which autoencoder decodes the latents.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion import contrastive
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import shares
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.dit import DiT, Shape
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.dataset import LatentDataset
from mmldm_scale.training.data import validation_set
from mmldm_scale.training.data.validation_set import ValidationSamples
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import StepInfo, Trainable


def build_trainable(config: DiTTraining) -> Trainable:
    """Return the trainable that trains the DiT of ``config`` on its latent shards.

    Raises:
        UserError: the shards are missing, damaged or of another kind, or the attention backend or contrastive loss
            asked for cannot work.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    head_width, dtype = config.model.width // config.model.heads, DTYPES[config.training.precision]
    choose_backend(config.model.attention, device, dtype, head_width)  # raises now if it cannot work
    dataset = LatentDataset(config)
    mixture = dataset.samples.mixture
    manifest = mixture.manifest
    if config.contrastive.weight and manifest.audio_shape[2] < 2:
        raise UserError("contrastive.weight: audio latents of one column cannot be shifted in time; 0 fits")
    module = NoisePrediction(config, manifest.audio_shape, manifest.video_shape, len(dataset.classes))
    return Trainable(
        name="dit",
        module=module,
        dataset=dataset,
        inputs={"shards": mixture.fingerprint, **dataset.inputs},
        flops_per_sample=forward_flops(config, manifest.audio_shape, manifest.video_shape),
        write_weights=functools.partial(_write_weights, _description(config, mixture, dataset.classes)),
        preview=None,
        quarantine=dataset.samples.quarantine,
        validation=_validation(config, dataset) if config.validation else None,
        begin_step=module.begin_step,
        weights={"contrastive": config.contrastive.weight} if config.contrastive.weight else {},
        startup_messages=dataset.startup_messages(),
    )


def forward_flops(config: DiTTraining, audio_shape: Shape, video_shape: Shape) -> float:
    """Return a sample's forward FLOPs, of which training takes three times as many; contrastive passes are counted."""
    passes = contrastive.PASSES if config.contrastive.weight else 1
    return passes * dit_macs(config.model, audio_shape, video_shape).flops


def _validation(config: DiTTraining, dataset: LatentDataset) -> ValidationSamples:
    settings = validation_set.settings(config, context=dataclasses.replace(config.context, dropout=0.0))
    held = LatentDataset(settings, dataset.classes)
    return ValidationSamples(held, dataset.samples.mixture, config.diffusion.steps)


class NoisePrediction(nn.Module):
    """The DiT with its loss: a batch of :class:`LatentDataset` in, each sample's losses out."""

    def __init__(self, config: DiTTraining, audio_shape: Shape, video_shape: Shape, classes: int = 0) -> None:
        super().__init__()
        self.dit = DiT(config.model, audio_shape, video_shape, classes)
        self.process = noise_process(config.diffusion)
        self.contrastive = config.contrastive
        self.steps, self.logged = config.diffusion.steps, False

    def begin_step(self, step: StepInfo) -> None:
        """Prepare for an optimizer step."""
        self.logged = step.logged

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what :func:`diffusion.loss.losses` does, each (B,), and which samples have what they might have:

        "data/continued" (a clip before them) and "data/context", where the configuration has such.
        On logged steps, and in validation, also "loss/audio" and "loss/video" by quarter of the schedule
        (:mod:`training.monitoring.metric_means`).
        """
        results = diffusion_loss.losses(self.dit, self.process, batch, self.contrastive)
        if self.logged or not self.training:
            results |= metric_means.by_time(results, batch["time"], self.steps)
        return results | shares(batch)


def _write_weights(description: dict[str, Any], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`NoisePrediction` as a weights folder of kind "dit"."""
    weights = {name.removeprefix("dit."): tensor for name, tensor in state.items()}
    pretrained.save(folder, "dit", description, weights)


def _description(config: DiTTraining, mixture: Mixture, classes: list[str]) -> dict[str, Any]:
    """Return what a weights folder says of its model: all that sampling needs besides the weights."""
    manifest = mixture.manifest
    return {
        "model": dataclasses.asdict(config.model),
        "diffusion": dataclasses.asdict(config.diffusion),
        "context": {"kind": config.context.kind, "classes": classes},
        "audio_shape": manifest.audio_shape,
        "video_shape": manifest.video_shape,
        "statistics": mixture.statistics,
        "media": dataclasses.asdict(manifest.media),
        "autoencoder": manifest.autoencoder,
    }
