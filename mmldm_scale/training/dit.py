"""The task "dit": the diffusion transformer, trained on latent shards (sections 3.2 and 3.3).

A sample is a clip's latents, drawn from their posteriors and normalised with the set's statistics, together with its
timestep, task and noise; all of it is a function of (seed, position). The weights folder carries everything that
sampling needs to know: sizes, schedule, statistics, what a clip is, and which autoencoder decodes the latents.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmldm_scale import counter
from mmldm_scale.config import DiTTraining
from mmldm_scale.diffusion import objective
from mmldm_scale.diffusion.normalise import normalise
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.order import Order
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.training.task import Task


def build_task(config: DiTTraining) -> Task:
    """Return the task that trains the DiT of ``config`` on its latent shards.

    Raises:
        UserError: the shards are missing, damaged or of another kind, or the attention backend asked for cannot work.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    choose_backend(config.model.attention, device, DTYPES[config.training.precision])  # say so now if it cannot work
    dataset = LatentDataset(config)
    manifest = dataset.shards.manifest
    module = NoisePrediction(config, manifest)
    return Task(
        name="dit",
        module=module,
        dataset=dataset,
        inputs={"shards": dataset.shards.fingerprint},
        flops_per_sample=dit_macs(config.model, manifest.audio_shape, manifest.video_shape).flops,
        write_weights=functools.partial(_write_weights, _description(config, manifest)),
        preview=None,
    )


class NoisePrediction(nn.Module):
    """The DiT with its loss: a batch of :class:`LatentDataset` in, each sample's losses out."""

    def __init__(self, config: DiTTraining, manifest: Manifest) -> None:
        super().__init__()
        self.dit = DiT(config.model, manifest.audio_shape, manifest.video_shape)
        self.schedule = scheduler(config.diffusion)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss", "loss/audio" and "loss/video", each (B,); see :func:`diffusion.objective.losses`."""
        return objective.losses(self.dit, self.schedule, batch)


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.objective.losses` takes them."""

    def __init__(self, config: DiTTraining) -> None:
        self.config = config
        self.shards = ShardSet(config.shards, "latents")
        if not len(self.shards):
            raise UserError(f"{config.shards}: this set of latent shards is empty; nothing can be learned from it")
        self.order = Order(len(self.shards), config.training.seed)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``: latents and noise (C, H, W), timestep and conditions as scalars."""
        manifest, seed = self.shards.manifest, self.config.training.seed
        latents = decode_latents(self.shards[self.order(position)].members)
        random = counter.generator(seed, "dit/latents", position)
        video = latents.video_mean, latents.video_logvar
        if random.random() < self.config.flip:
            video = latents.mirrored_mean, latents.mirrored_logvar
        drawn = objective.draw(self.config.diffusion, manifest.audio_shape, manifest.video_shape, seed, position)
        return {
            "audio": normalise(
                _posterior_sample(latents.audio_mean, latents.audio_logvar, random), manifest.statistics["audio"]
            ),
            "video": normalise(_posterior_sample(*video, random), manifest.statistics["video"]),
            "audio_noise": torch.from_numpy(drawn.audio_noise),
            "video_noise": torch.from_numpy(drawn.video_noise),
            "time": torch.tensor(drawn.time),
            "audio_given": torch.tensor(drawn.audio_given),
            "video_given": torch.tensor(drawn.video_given),
        }


def _posterior_sample(mean: np.ndarray, logvar: np.ndarray, random: np.random.Generator) -> Tensor:
    noise = random.standard_normal(mean.shape, dtype=np.float32)
    return torch.from_numpy(mean.astype(np.float32) + np.exp(0.5 * logvar.astype(np.float32)) * noise)


def _write_weights(description: dict[str, Any], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`NoisePrediction` as a weights folder of kind "dit"."""
    weights = {name.removeprefix("dit."): tensor for name, tensor in state.items()}
    pretrained.save(folder, "dit", description, weights)


def _description(config: DiTTraining, manifest: Manifest) -> dict[str, Any]:
    """Return what a weights folder says of its model: all that sampling needs besides the weights."""
    return {
        "model": dataclasses.asdict(config.model),
        "diffusion": dataclasses.asdict(config.diffusion),
        "audio_shape": manifest.audio_shape,
        "video_shape": manifest.video_shape,
        "statistics": manifest.statistics,
        "media": dataclasses.asdict(manifest.media),
        "autoencoder": manifest.autoencoder,
    }
