"""What the DiT learns from, by global position: latents with their timestep, task, noise and context.

A clip's latents are drawn from their posteriors and normalised with the set's statistics. All of a sample is a function
of (seed, position), and so is the clip before it, for a sample that continues that one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import contrastive
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import context_dropped, previous_seen
from mmldm_scale.diffusion.normalise import Statistics, normalise
from mmldm_scale.shards.latents import LatentSample, decode_latent_batch
from mmldm_scale.shards.reader import Sample
from mmldm_scale.trainables.dit import context as dit_context
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.data.sample_stream import SampleStream
from mmldm_scale.training.trainable import Batch

LOOKED_AT = 256  # samples, to tell the user how many of them can be conditioned as asked for


@dataclass(frozen=True)
class LatentClip:
    """What is read of one clip: its record, its posteriors (C, H, W), its context."""

    sample: Sample
    latents: LatentSample
    context: Batch


class SampleMaker:
    """Makes training samples of clips: a pure function of (seed, position, clip).

    The planner calls it as well, with latents of zeros.
    """

    def __init__(
        self,
        config: DiTTraining,
        audio_shape: Shape,
        video_shape: Shape,
        statistics: dict[str, Statistics],
        null_context: Batch,
    ) -> None:
        """Take the latents' shapes (C, H, W), their statistics, and what a sample without a context holds of it."""
        self._config, self._shapes = config, (audio_shape, video_shape)
        self._statistics, self._null_context = statistics, null_context

    def make(
        self,
        position: int,
        latents: LatentSample,
        context: Batch,
        previous: Callable[[], LatentSample | None] = lambda: None,
        other: LatentSample | None = None,
    ) -> Batch:
        """Return the training sample that a clip becomes at ``position``.

        Args:
            latents: posteriors of the clip.
            context: of the clip.
            previous: returns the clip before it, if there is one; called for a sample that continues a clip.
            other: another clip, for the contrastive loss.
        """
        config, seed = self._config, self._config.training.seed
        drawn = diffusion_loss.draw(config.diffusion, *self._shapes, seed, position)
        random = rng.generator(seed, "dit/latents", position)
        mirrored = random.random() < config.flip
        audio, video = self._latents(latents, mirrored, random)
        sample = {
            "audio": audio,
            "video": video,
            "audio_noise": torch.from_numpy(drawn.audio_noise),
            "video_noise": torch.from_numpy(drawn.video_noise),
            "time": torch.tensor(drawn.time),
            "audio_given": torch.tensor(drawn.audio_given),
            "video_given": torch.tensor(drawn.video_given),
        }
        dropped = self._null_context and context_dropped(config.context.dropout, seed, position)
        sample |= self._null_context if dropped else context
        if config.diffusion.continued:
            sample |= self._previous(position, previous() if drawn.continued else None, mirrored)
        if other is not None:
            sample |= self._partners(position, audio, other)
        return sample

    def _previous(self, position: int, previous: LatentSample | None, mirrored: bool) -> Batch:
        """Return the clip before as the sample at ``position`` sees it."""
        seed, seen = self._config.training.seed, ()
        audio, video = (torch.zeros(shape) for shape in self._shapes)
        if previous is not None:
            random = rng.generator(seed, "dit/previous", position)
            audio, video = self._latents(previous, mirrored, random)
            seen = previous_seen(self._config.diffusion, seed, position)
        return {
            "previous_audio": audio,
            "previous_video": video,
            "previous_audio_given": torch.tensor("audio" in seen),
            "previous_video_given": torch.tensor("video" in seen),
        }

    def _partners(self, position: int, audio: Tensor, other: LatentSample) -> Batch:
        """Return what the contrastive loss compares the sample at ``position`` with; ``audio`` is its own."""
        seed = self._config.training.seed
        random = rng.generator(seed, "dit/contrastive/other", position)
        other_audio, other_video = self._latents(other, random.random() < self._config.flip, random)
        shift = contrastive.draw_shift(audio.shape[-1], seed, position)
        return {"other_audio": other_audio, "other_video": other_video, "shifted_audio": audio.roll(shift, dims=-1)}

    def _latents(self, latents: LatentSample, mirrored: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return audio and video (C, H, W), drawn from the posteriors ``latents`` and normalised."""
        video = latents.video_mean, latents.video_logvar
        if mirrored:
            video = latents.mirrored_mean, latents.mirrored_logvar
        drawn = [_posterior_sample(*of, random) for of in ((latents.audio_mean, latents.audio_logvar), video)]
        return normalise(drawn[0], self._statistics["audio"]), normalise(drawn[1], self._statistics["video"])


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.loss.losses` takes them.

    Attributes:
        samples: the clips that they are made of.
        classes: names of the classes that the model knows; none if contexts are not made of classes.
    """

    def __init__(
        self,
        config: DiTTraining,
        classes: Sequence[str] | None = None,
        statistics: dict[str, Statistics] | None = None,
    ) -> None:
        """Open the sets of ``config``.

        Args:
            classes: those that the model knows; None: those of these sets.
            statistics: the latents are normalised by these; None: by those of these sets.

        Raises:
            UserError: sets or embeddings cannot be used.
        """
        self.config = config
        self.samples = SampleStream(config, "latents")
        mixture = self.samples.mixture
        manifest, names = mixture.manifest, mixture.classes
        self.classes = list(names if classes is None else classes) if config.context.kind == "class" else []
        self._context = dit_context.make(config.context, config.model, names, self.classes)
        null_context = self._context.null() if self._context else {}
        self._maker = SampleMaker(
            config, manifest.audio_shape, manifest.video_shape, statistics or mixture.statistics, null_context
        )

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

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``: latents and noise (C, H, W), timestep and conditions as scalars."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Batch]:
        """Return the samples at ``positions``; the loader asks for a micro-batch at once, which reads faster."""
        clips = self.samples.read(positions, self._clips)
        others: Sequence[LatentSample | None] = [None] * len(positions)
        if self.config.contrastive.weight:
            others = _rows(self.samples.read_others(positions, self._decode))
        return [self._sample(*parts) for parts in zip(positions, clips, others, strict=True)]

    def _sample(self, position: int, clip: LatentClip, other: LatentSample | None) -> Batch:
        def previous() -> LatentSample | None:
            batch = self.samples.before(position, clip.sample, self._decode)
            return None if batch is None else _rows(batch)[0]

        return self._maker.make(position, clip.latents, clip.context, previous, other)

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


def _rows(latents: LatentSample) -> list[LatentSample]:
    """Return the samples that ``latents``, of a batch, hold."""
    columns = (getattr(latents, field.name) for field in dataclasses.fields(latents))
    return [LatentSample(*row) for row in zip(*columns, strict=True)]


def _posterior_sample(mean: np.ndarray, logvar: np.ndarray, random: np.random.Generator) -> Tensor:
    noise = random.standard_normal(mean.shape, dtype=np.float32)
    return torch.from_numpy(mean.astype(np.float32) + np.exp(0.5 * logvar.astype(np.float32)) * noise)
