"""What the DiT learns from, by global position: latents with their timestep, task, noise and context.

A clip's latents are drawn from their posteriors and normalised with the set's statistics. All of a sample is a function
of (seed, position), and so is the clip before it, for a sample that continues that one.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion import contrastive
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import context_dropped, previous_seen
from mmldm_scale.diffusion.normalise import normalise
from mmldm_scale.shards.latents import LatentSample, decode_latent_batch
from mmldm_scale.shards.reader import Sample
from mmldm_scale.trainables.dit import context as dit_context
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.data.sample_stream import Samples

LOOKED_AT = 256  # samples, to tell the user how many of them can be conditioned as asked for


@dataclass(frozen=True)
class LatentClip:
    """What is read of one clip: where it comes from, its posteriors (C, H, W), its context."""

    sample: Sample
    latents: LatentSample
    dit_context: dict[str, Tensor]


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.loss.losses` takes them.

    Attributes:
        samples: the clips that they are made of.
        classes: names of the classes that the model knows; none if contexts are not made of classes.
    """

    def __init__(self, config: DiTTraining, classes: Sequence[str] | None = None) -> None:
        """Open the sets of ``config``; ``classes``: those that the model knows, if not those of these sets.

        Raises:
            UserError: sets or embeddings cannot be used.
        """
        self.config = config
        self.samples = Samples(config, "latents")
        names = self.samples.mixture.classes
        self.classes = list(names if classes is None else classes) if config.context.kind == "class" else []
        self._context = dit_context.make(config.context, config.model, names, self.classes)

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of what is learned from besides the shards, by configuration key."""
        texts = isinstance(self._context, dit_context.TextContext)
        return {"context.embeddings": self._context.fingerprint} if texts else {}

    def startup_messages(self) -> list[str]:
        """Return what the user should know of the conditions, a line each, from a look at the first samples.

        Raises:
            UserError: not one of them has what is asked for.
        """
        count, found = min(LOOKED_AT, len(self.samples.mixture)), {}
        if isinstance(self._context, dit_context.TextContext):
            names = [self._context.name(clip.sample) for clip in self.samples.read(range(count), self._clips)]
            found["context.embeddings", "an embedding"] = sum(name is not None for name in names)
        if self.config.diffusion.continued:
            found["diffusion.continued", "a clip before them"] = self.samples.count_continuing(count)
        lines = [f"{key}: {number} of the first {count} samples have {what}" for (key, what), number in found.items()]
        for line, number in zip(lines, found.values(), strict=True):
            if not number:
                raise UserError(line)
        return lines

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``: latents and noise (C, H, W), timestep and conditions as scalars."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples at ``positions``; the loader asks for a micro-batch at once, which reads faster."""
        samples = [*map(self._sample, positions, self.samples.read(positions, self._clips))]
        if self.config.contrastive.weight:
            others = _rows(self.samples.read_others(positions, self._decode))
            for position, sample, other in zip(positions, samples, others, strict=True):
                sample |= self._partners(position, sample["audio"], other)
        return samples

    def _clips(self, found: Sequence[Sample]) -> list[LatentClip]:
        """Return the clips ``found``; raise ValueError or DamagedSample if one of them is not what it should be."""
        contexts = [self._context.of(sample) if self._context else {} for sample in found]
        return [*map(LatentClip, found, _rows(self._decode(found)), contexts)]

    def _decode(self, found: Sequence[Sample]) -> LatentSample:
        latents, manifest = decode_latent_batch([sample.members for sample in found]), self.samples.mixture.manifest
        shapes = latents.audio_mean.shape[1:], latents.video_mean.shape[1:], latents.mirrored_mean.shape[1:]
        if shapes != (manifest.audio_shape, manifest.video_shape, manifest.video_shape):
            raise ValueError(f"latents of shapes {shapes}, not {manifest.audio_shape} and {manifest.video_shape}")
        return latents

    def _sample(self, position: int, clip: LatentClip) -> dict[str, Tensor]:
        """Return the training sample that ``clip`` becomes at ``position``."""
        config, manifest, seed = self.config, self.samples.mixture.manifest, self.config.training.seed
        drawn = diffusion_loss.draw(config.diffusion, manifest.audio_shape, manifest.video_shape, seed, position)
        random = rng.generator(seed, "dit/latents", position)
        mirrored = random.random() < config.flip
        audio, video = self._latents(clip.latents, mirrored, random)
        sample = {
            "audio": audio,
            "video": video,
            "audio_noise": torch.from_numpy(drawn.audio_noise),
            "video_noise": torch.from_numpy(drawn.video_noise),
            "time": torch.tensor(drawn.time),
            "audio_given": torch.tensor(drawn.audio_given),
            "video_given": torch.tensor(drawn.video_given),
        }
        if self._context:
            dropped = context_dropped(config.context.dropout, seed, position)
            sample |= self._context.null() if dropped else clip.context
        if config.diffusion.continued:
            earlier = self.samples.before(position, clip.sample, self._decode) if drawn.continued else None
            sample |= self._previous(position, earlier, mirrored)
        return sample

    def _previous(self, position: int, earlier: LatentSample | None, mirrored: bool) -> dict[str, Tensor]:
        """Return the clip before as the sample at ``position`` sees it; ``earlier``: a batch of it, if there is one."""
        manifest, seed = self.samples.mixture.manifest, self.config.training.seed
        audio, video, seen = torch.zeros(manifest.audio_shape), torch.zeros(manifest.video_shape), ()
        if earlier is not None:
            random = rng.generator(seed, "dit/previous", position)
            audio, video = self._latents(_rows(earlier)[0], mirrored, random)
            seen = previous_seen(self.config.diffusion, seed, position)
        return {
            "previous_audio": audio,
            "previous_video": video,
            "previous_audio_given": torch.tensor("audio" in seen),
            "previous_video_given": torch.tensor("video" in seen),
        }

    def _partners(self, position: int, audio: Tensor, other: LatentSample) -> dict[str, Tensor]:
        """Return what the sample at ``position`` is held against by the contrastive loss; ``audio`` is its own."""
        seed = self.config.training.seed
        random = rng.generator(seed, "dit/contrastive/other", position)
        other_audio, other_video = self._latents(other, random.random() < self.config.flip, random)
        shift = contrastive.draw_shift(audio.shape[-1], seed, position)
        return {"other_audio": other_audio, "other_video": other_video, "shifted_audio": audio.roll(shift, dims=-1)}

    def _latents(self, latents: LatentSample, mirrored: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return audio and video (C, H, W), normalised, drawn from the posteriors ``latents``."""
        video = latents.video_mean, latents.video_logvar
        if mirrored:
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
