"""The DiT's training samples by global position: latents with timestep, task, noise and context.

:class:`LatentDataset` reads the clips, :class:`SampleMaker` turns one into a sample: it takes the mode of the latents'
posteriors or draws from them, and normalises with the set's statistics. A sample is a pure function of (seed,
position), and so is the preceding clip of a sample that continues it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import context_dropped, previous_seen
from mmldm_scale.diffusion.normalise import Statistics, normalise
from mmldm_scale.shards.latents import LatentSample, decode_latent_batch
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.reader import Sample
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.context import TextContext, build_context
from mmldm_scale.training.data.sample_stream import SampleStream
from mmldm_scale.training.trainable import Batch

CONTINUED = "a preceding clip; the others are trained without"
DISPLACED = "another window of their video half a clip away; the others do without that pairing"
EXAMINED_SAMPLES = 256  # samples that are counted at the start: how many have each condition


@dataclass(frozen=True)
class LatentClip:
    """One clip as read: its sample in the shards, its posteriors (C, H, W), its context."""

    sample: Sample
    latents: LatentSample
    context: Batch


class SampleMaker:
    """Makes training samples of clips: a pure function of (seed, position, clip).

    The trainable's outline uses it as well, with latents of zeros.
    """

    def __init__(
        self,
        config: DiTTraining,
        audio_shape: Shape,
        video_shape: Shape,
        statistics: dict[str, Statistics],
        null_context: Batch,
    ) -> None:
        """Set what all samples share.

        Args:
            audio_shape: (C, H, W) of the audio latents.
            video_shape: (C, H, W) of the video latents.
            statistics: mean and standard deviation of each channel, by modality ("audio", "video").
            null_context: the context of a sample that has none; {} if no sample has a context.
        """
        self._config, self._shapes = config, (audio_shape, video_shape)
        self._statistics, self._null_context = statistics, null_context

    def make(
        self,
        position: int,
        latents: LatentSample,
        context: Batch,
        previous: Callable[[], LatentSample | None] = lambda: None,
        other: LatentSample | None = None,
        displaced: LatentSample | None = None,
    ) -> Batch:
        """Return the training sample of a clip at ``position``.

        Args:
            latents: posteriors of the clip, (C, H, W) each.
            context: of the clip.
            previous: returns the posteriors of the preceding clip, or None; called only if the sample continues a clip.
            other: posteriors of another clip, for the contrastive loss; None without that loss.
            displaced: posteriors of another window of the clip's video, for the contrastive loss; None: there is none.

        Returns:
            The entries that :func:`diffusion.loss.losses` reads, without a batch dimension: latents and noise
            (C, H, W) float32, timestep and flags ().
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
            sample |= self._partners(position, other, displaced)
        return sample

    def _previous(self, position: int, previous: LatentSample | None, mirrored: bool) -> Batch:
        """Return the preceding clip as a condition of the sample at ``position``; zeros if ``previous`` is None."""
        seed = self._config.training.seed
        seen: tuple[str, ...] = ()
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

    def _partners(self, position: int, other: LatentSample, displaced: LatentSample | None) -> Batch:
        """Return the mismatched latents of the contrastive loss for the sample at ``position``."""
        seed = self._config.training.seed
        random = rng.generator(seed, "dit/contrastive/other", position)
        other_audio, other_video = self._latents(other, random.random() < self._config.flip, random)
        displaced_audio = torch.zeros(self._shapes[0])
        if displaced is not None:
            displaced_audio = self._audio(displaced, rng.generator(seed, "dit/contrastive/displaced", position))
        return {
            "other_audio": other_audio,
            "other_video": other_video,
            "displaced_audio": displaced_audio,
            "displaced_given": torch.tensor(displaced is not None),
        }

    def _latents(self, latents: LatentSample, mirrored: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return normalised audio and video latents (C, H, W) of the posteriors ``latents``, as ``posterior`` says."""
        video_mean, video_logvar = latents.video_mean, latents.video_logvar
        if mirrored:
            video_mean, video_logvar = latents.mirrored_mean, latents.mirrored_logvar
        audio = self._audio(latents, random)
        return audio, normalise(self._latent(video_mean, video_logvar, random), self._statistics["video"])

    def _audio(self, latents: LatentSample, random: np.random.Generator) -> Tensor:
        """Return the normalised audio latents (C, H, W) of the posterior in ``latents``."""
        audio = self._latent(latents.audio_mean, latents.audio_logvar, random)
        return normalise(audio, self._statistics["audio"])

    def _latent(self, mean: np.ndarray, logvar: np.ndarray, random: np.random.Generator) -> Tensor:
        """Return the float32 mode of N(``mean``, exp(``logvar``)) or a draw from it, all (C, H, W)."""
        latent = mean.astype(np.float32)
        if self._config.posterior == "draw":
            noise = random.standard_normal(mean.shape, dtype=np.float32)
            latent = latent + np.exp(0.5 * logvar.astype(np.float32)) * noise
        return torch.from_numpy(latent)


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.loss.losses` takes them.

    Attributes:
        samples: the clips of the shard sets.
        classes: names of the model's classes; empty unless ``context.kind`` is "class".
        audio_shape: (C, H, W) of the audio latents.
        video_shape: (C, H, W) of the video latents.
    """

    def __init__(
        self,
        config: DiTTraining,
        classes: Sequence[str] | None = None,
        statistics: dict[str, Statistics] | None = None,
    ) -> None:
        """Open the sets of ``config``.

        Args:
            classes: names of the model's classes; None: those of these sets.
            statistics: the latents are normalised by these; None: by those of these sets.

        Raises:
            UserError: shard sets or embeddings are missing, damaged or of another kind.
        """
        self.config = config
        self.samples = SampleStream(config, "latents")
        mixture = self.samples.mixture
        model_classes = list(mixture.classes if classes is None else classes)
        self.classes = model_classes if config.context.kind == "class" else []
        self.audio_shape, self.video_shape = _latent_shapes(mixture.manifest)
        self._context = build_context(config.context, config.model, mixture.classes, self.classes)
        null_context = self._context.null() if self._context else {}
        self._maker = SampleMaker(
            config, self.audio_shape, self.video_shape, statistics or mixture.statistics, null_context
        )

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the training data besides the shards, by configuration key."""
        if isinstance(self._context, TextContext):
            return {"context.embeddings": self._context.fingerprint}
        return {}

    def startup_messages(self) -> list[str]:
        """Return a line for each condition: how many of the first samples have it.

        Raises:
            UserError: none of these samples has a condition that the configuration requires.
        """
        total = min(EXAMINED_SAMPLES, len(self.samples.mixture))
        required: dict[tuple[str, str], int] = {}  # counts by configuration key and condition
        optional: dict[tuple[str, str], int] = {}
        if isinstance(self._context, TextContext):
            names = [self._context.name(clip.sample) for clip in self.samples.read(range(total), self._clips)]
            required["context.embeddings", "an embedding"] = sum(name is not None for name in names)
        if self.config.diffusion.continued:
            required["diffusion.continued", CONTINUED] = self.samples.count_continuing(total)
        if self.config.contrastive.weight:
            optional["contrastive.weight", DISPLACED] = self.samples.count_displaced(total)
        counts = required | optional
        lines = {key: f"{key[0]}: {n} of the first {total} samples have {key[1]}" for key, n in counts.items()}
        for key, count in required.items():
            if not count:
                raise UserError(lines[key])
        return list(lines.values())

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``: latents and noise (C, H, W), timestep and conditions as scalars."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Batch]:
        """Return the samples at ``positions``; reading a micro-batch at once is faster than one by one."""
        clips = self.samples.read(positions, self._clips)
        others: Sequence[LatentSample | None] = [None] * len(positions)
        if self.config.contrastive.weight:
            others = _rows(self.samples.read_others(positions, self._decode))
        return [self._sample(*parts) for parts in zip(positions, clips, others, strict=True)]

    def _sample(self, position: int, clip: LatentClip, other: LatentSample | None) -> Batch:
        def related(find: Callable[..., LatentSample | None]) -> LatentSample | None:
            batch = find(position, clip.sample, self._decode)
            return None if batch is None else _rows(batch)[0]

        displaced = related(self.samples.displaced) if other is not None else None
        previous = functools.partial(related, self.samples.before)
        return self._maker.make(position, clip.latents, clip.context, previous, other, displaced)

    def _clips(self, samples: Sequence[Sample]) -> list[LatentClip]:
        """Return the clips of ``samples``; raise ValueError or DamagedSample if one of them is damaged."""
        contexts = [self._context.read(sample) if self._context else {} for sample in samples]
        return [*map(LatentClip, samples, _rows(self._decode(samples)), contexts)]

    def _decode(self, samples: Sequence[Sample]) -> LatentSample:
        """Return the posteriors of ``samples``, (B, C, H, W) each; raise ValueError if their shapes are wrong."""
        latents = decode_latent_batch([sample.members for sample in samples])
        shapes = latents.audio_mean.shape[1:], latents.video_mean.shape[1:], latents.mirrored_mean.shape[1:]
        if shapes != (self.audio_shape, self.video_shape, self.video_shape):
            raise ValueError(f"latents of shapes {shapes}, not {self.audio_shape} and {self.video_shape}")
        return latents


def _latent_shapes(manifest: Manifest) -> tuple[Shape, Shape]:
    """Return the shapes (C, H, W) of the audio and video latents of a set.

    Raises:
        UserError: the manifest does not have them.
    """
    if manifest.audio_shape is None or manifest.video_shape is None:
        raise UserError("shards: the manifest must have audio_shape and video_shape")
    return manifest.audio_shape, manifest.video_shape


def _rows(latents: LatentSample) -> list[LatentSample]:
    """Return the samples (C, H, W) of the batch ``latents`` (B, C, H, W)."""
    columns = (getattr(latents, field.name) for field in dataclasses.fields(latents))
    return [LatentSample(*row) for row in zip(*columns, strict=True)]
