"""The task "dit": the diffusion transformer, trained on latent shards (sections 3.2 and 3.3).

A sample is a clip's latents, drawn from their posteriors and normalised with the set's statistics, together with its
timestep, task and noise; all of it is a function of (seed, position). The weights folder carries everything that
sampling needs to know: sizes, schedule, statistics, what a clip is, and which autoencoder decodes the latents.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmldm_scale import counter
from mmldm_scale.config import DiTTraining
from mmldm_scale.diffusion import contrastive, objective
from mmldm_scale.diffusion.normalise import normalise
from mmldm_scale.diffusion.process import noise_process
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.dit import DiT, Shape
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.shards.latents import LatentSample, decode_latent_batch
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.shards.reader import Sample
from mmldm_scale.training import held_out, means
from mmldm_scale.training.held_out import HeldOutLatents
from mmldm_scale.training.samples import Samples
from mmldm_scale.training.task import StepInfo, Task


def build_task(config: DiTTraining) -> Task:
    """Return the task that trains the DiT of ``config`` on its latent shards.

    Raises:
        UserError: the shards are missing, damaged or of another kind, or the attention backend or contrastive loss
            asked for cannot work.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    choose_backend(config.model.attention, device, DTYPES[config.training.precision])  # say so now if it cannot work
    dataset = LatentDataset(config)
    mixture = dataset.samples.mixture
    manifest = mixture.manifest
    if config.contrastive.weight and manifest.audio_shape[2] < 2:
        raise UserError("contrastive.weight: audio latents of one column cannot be shifted in time; 0 fits")
    passes = contrastive.PASSES if config.contrastive.weight else 1
    module = NoisePrediction(config, manifest.audio_shape, manifest.video_shape)
    return Task(
        name="dit",
        module=module,
        dataset=dataset,
        inputs={"shards": mixture.fingerprint},
        flops_per_sample=passes * dit_macs(config.model, manifest.audio_shape, manifest.video_shape).flops,
        write_weights=functools.partial(_write_weights, _description(config, mixture)),
        preview=None,
        quarantine=dataset.samples.quarantine,
        validation=HeldOutLatents(LatentDataset(held_out.settings(config)), dataset) if config.validation else None,
        begin_step=module.begin_step,
        weights={"contrastive": config.contrastive.weight} if config.contrastive.weight else {},
    )


class NoisePrediction(nn.Module):
    """The DiT with its loss: a batch of :class:`LatentDataset` in, each sample's losses out."""

    def __init__(self, config: DiTTraining, audio_shape: Shape, video_shape: Shape) -> None:
        super().__init__()
        self.dit = DiT(config.model, audio_shape, video_shape)
        self.process = noise_process(config.diffusion)
        self.contrastive = config.contrastive
        self.steps, self.logged = config.diffusion.steps, False

    def begin_step(self, step: StepInfo) -> None:
        """Prepare for an optimizer step."""
        self.logged = step.logged

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what :func:`diffusion.objective.losses` does, each (B,).

        On logged steps, and in validation, also "loss/audio" and "loss/video" by quarter of the schedule
        (:mod:`training.means`).
        """
        results = objective.losses(self.dit, self.process, batch, self.contrastive)
        if self.logged or not self.training:
            results |= means.by_time(results, batch["time"], self.steps)
        return results


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.objective.losses` takes them."""

    def __init__(self, config: DiTTraining) -> None:
        self.config = config
        self.samples = Samples(config, "latents")

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``: latents and noise (C, H, W), timestep and conditions as scalars."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples at ``positions``; the loader asks for a micro-batch at once, which reads faster."""
        samples = [*map(self._sample, positions, _rows(self.samples.read(positions, self._decode)))]
        if self.config.contrastive.weight:
            others = _rows(self.samples.read_others(positions, self._decode))
            for position, sample, other in zip(positions, samples, others, strict=True):
                sample |= self._partners(position, sample["audio"], other)
        return samples

    def _decode(self, found: Sequence[Sample]) -> LatentSample:
        latents, manifest = decode_latent_batch([sample.members for sample in found]), self.samples.mixture.manifest
        shapes = latents.audio_mean.shape[1:], latents.video_mean.shape[1:], latents.mirrored_mean.shape[1:]
        if shapes != (manifest.audio_shape, manifest.video_shape, manifest.video_shape):
            raise ValueError(f"latents of shapes {shapes}, not {manifest.audio_shape} and {manifest.video_shape}")
        return latents

    def _sample(self, position: int, latents: LatentSample) -> dict[str, Tensor]:
        """Return the training sample that the posteriors ``latents`` of one clip become at ``position``."""
        manifest, seed = self.samples.mixture.manifest, self.config.training.seed
        drawn = objective.draw(self.config.diffusion, manifest.audio_shape, manifest.video_shape, seed, position)
        audio, video = self._latents(latents, counter.generator(seed, "dit/latents", position))
        return {
            "audio": audio,
            "video": video,
            "audio_noise": torch.from_numpy(drawn.audio_noise),
            "video_noise": torch.from_numpy(drawn.video_noise),
            "time": torch.tensor(drawn.time),
            "audio_given": torch.tensor(drawn.audio_given),
            "video_given": torch.tensor(drawn.video_given),
        }

    def _partners(self, position: int, audio: Tensor, other: LatentSample) -> dict[str, Tensor]:
        """Return what the sample at ``position`` is held against by the contrastive loss; ``audio`` is its own."""
        seed = self.config.training.seed
        other_audio, other_video = self._latents(other, counter.generator(seed, "dit/contrastive/other", position))
        shift = contrastive.draw_shift(audio.shape[-1], seed, position)
        return {"other_audio": other_audio, "other_video": other_video, "shifted_audio": audio.roll(shift, dims=-1)}

    def _latents(self, latents: LatentSample, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return audio and video (C, H, W), normalised, drawn from the posteriors ``latents``, perhaps mirrored."""
        video = latents.video_mean, latents.video_logvar
        if random.random() < self.config.flip:
            video = latents.mirrored_mean, latents.mirrored_logvar
        drawn = [_posterior_sample(*of, random) for of in ((latents.audio_mean, latents.audio_logvar), video)]
        statistics = self.samples.mixture.statistics
        return normalise(drawn[0], statistics["audio"]), normalise(drawn[1], statistics["video"])


def _rows(latents: LatentSample) -> list[LatentSample]:
    """Return the samples that ``latents``, of a batch, hold."""
    columns = (getattr(latents, field.name) for field in dataclasses.fields(latents))
    return [LatentSample(*row) for row in zip(*columns, strict=True)]


def _posterior_sample(mean: np.ndarray, logvar: np.ndarray, random: np.random.Generator) -> Tensor:
    noise = random.standard_normal(mean.shape, dtype=np.float32)
    return torch.from_numpy(mean.astype(np.float32) + np.exp(0.5 * logvar.astype(np.float32)) * noise)


def _write_weights(description: dict[str, Any], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`NoisePrediction` as a weights folder of kind "dit"."""
    weights = {name.removeprefix("dit."): tensor for name, tensor in state.items()}
    pretrained.save(folder, "dit", description, weights)


def _description(config: DiTTraining, mixture: Mixture) -> dict[str, Any]:
    """Return what a weights folder says of its model: all that sampling needs besides the weights."""
    manifest = mixture.manifest
    return {
        "model": dataclasses.asdict(config.model),
        "diffusion": dataclasses.asdict(config.diffusion),
        "audio_shape": manifest.audio_shape,
        "video_shape": manifest.video_shape,
        "statistics": mixture.statistics,
        "media": dataclasses.asdict(manifest.media),
        "autoencoder": manifest.autoencoder,
    }
