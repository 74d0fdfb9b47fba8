"""The DiT's training samples by global position: latents with timestep, task, noise and context.

:class:`LatentDataset` reads the clips, :class:`SampleMaker` turns one into a sample: it takes the mode of the latents'
posteriors or draws from them, and normalises with the set's statistics. A sample is a pure function of (seed,
position), and so is the preceding clip of a sample that continues it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, as_pair
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import context_dropped, is_continued, previous_seen
from mmldm_scale.diffusion.normalise import Statistics, normalise
from mmldm_scale.shards.latents import PARTS, LatentSample, Part, decode_latent_batch, parts_of
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.reader import Sample
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.context import TextContext, build_context
from mmldm_scale.training.data.sample_stream import SampleStream
from mmldm_scale.training.trainable import Batch

CONTINUED = "a preceding clip; the others are trained without"
DISPLACED = "the sound of another window of their video as a wrong pairing; the others do without"
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
        shapes: Mapping[Modality, Shape],
        statistics: Mapping[str, Statistics],
        null_context: Batch,
    ) -> None:
        """Set what all samples share.

        Args:
            shapes: (C, H, W) of the latents of the model's modalities.
            statistics: mean and standard deviation of each channel, by modality ("audio", "video").
            null_context: the context of a sample that has none; {} if no sample has a context.
        """
        self._config, self._shapes = config, shapes
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
        drawn = diffusion_loss.draw(config.diffusion, *as_pair(self._shapes), seed, position)
        random = rng.generator(seed, "dit/latents", position)
        mirrored = random.random() < config.flip
        sample: Batch = {"time": torch.tensor(drawn.time)}
        if self._config.diffusion.mean_flow:
            sample["interval"] = torch.tensor(drawn.interval)
        for name, latent in self._latents(latents, mirrored, random).items():
            sample[name] = latent
            sample[f"{name}_noise"] = torch.from_numpy(getattr(drawn, f"{name}_noise"))
            sample[f"{name}_given"] = torch.tensor(getattr(drawn, f"{name}_given"))
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
        latents = {name: torch.zeros(shape) for name, shape in self._shapes.items()}
        if previous is not None:
            random = rng.generator(seed, "dit/previous", position)
            latents = self._latents(previous, mirrored, random)
            seen = previous_seen(self._config.diffusion, seed, position)
        return {f"previous_{name}": latent for name, latent in latents.items()} | {
            f"previous_{name}_given": torch.tensor(name in seen) for name in latents
        }

    def _partners(self, position: int, other: LatentSample, displaced: LatentSample | None) -> Batch:
        """Return the mismatched latents of the contrastive loss for the sample at ``position``."""
        seed = self._config.training.seed
        random = rng.generator(seed, "dit/contrastive/other", position)
        others = self._latents(other, random.random() < self._config.flip, random)
        displaced_audio = torch.zeros(self._shapes["audio"])
        if displaced is not None:
            random = rng.generator(seed, "dit/contrastive/displaced", position)
            displaced_audio = self._latent("audio", *displaced.parts["audio"], random)
        return {
            **{f"other_{name}": latent for name, latent in others.items()},
            "displaced_audio": displaced_audio,
            "displaced_given": torch.tensor(displaced is not None),
        }

    def _latents(self, latents: LatentSample, mirrored: bool, random: np.random.Generator) -> dict[Modality, Tensor]:
        """Return normalised latents (C, H, W) of the posteriors ``latents`` by modality, as ``posterior`` says."""
        parts: dict[Modality, Part] = {"audio": "audio", "video": "mirrored" if mirrored else "video"}
        return {name: self._latent(name, *latents.parts[parts[name]], random) for name in self._shapes}

    def _latent(self, modality: Modality, mean: np.ndarray, logvar: np.ndarray, random: np.random.Generator) -> Tensor:
        """Return the normalised mode of N(``mean``, exp(``logvar``)) or a draw from it, all (C, H, W), float32."""
        latent = mean.astype(np.float32)
        if self._config.posterior == "draw":
            noise = random.standard_normal(mean.shape, dtype=np.float32)
            latent = latent + np.exp(0.5 * logvar.astype(np.float32)) * noise
        return normalise(torch.from_numpy(latent), self._statistics[modality])


class LatentDataset:
    """Training samples by global position, as :func:`diffusion.loss.losses` takes them.

    Attributes:
        samples: the clips of the shard sets.
        classes: names of the model's classes; empty unless ``context.kind`` is "class".
        shapes: (C, H, W) of the latents of the model's modalities.
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
        self.shapes = stored_shapes(mixture.manifest, config.model.modalities)
        self._context = build_context(config.context, config.model, mixture.classes, self.classes)
        null_context = self._context.null() if self._context else {}
        self._maker = SampleMaker(config, self.shapes, statistics or mixture.statistics, null_context)

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
        clips = self.samples.read(positions, self._clips, self._is_continued)
        others: Sequence[LatentSample | None] = [None] * len(positions)
        if self.config.contrastive.weight:
            others = _rows(self.samples.read_others(positions, self._decode))
        return [self._sample(*parts) for parts in zip(positions, clips, others, strict=True)]

    def _is_continued(self, position: int) -> bool:
        """Return whether the sample at ``position`` is to see the preceding clip."""
        return is_continued(self.config.diffusion, self.config.training.seed, position)

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
        shapes = {part: mean.shape[1:] for part, (mean, _) in latents.parts.items()}
        expected = {part: self.shapes[PARTS[part]] for part in parts_of(self.shapes)}
        if shapes != expected:
            raise ValueError(f"latents of shapes {shapes}, not {expected}")
        return latents


def stored_shapes(manifest: Manifest, modalities: Sequence[Modality]) -> dict[Modality, Shape]:
    """Return the shapes (C, H, W) of the latents of a set, by modality.

    Raises:
        UserError: the set does not have the model's ``modalities``, or others as well.
    """
    if list(manifest.shapes) != list(modalities):
        actual, needed = (f"[{', '.join(names)}]" for names in (modalities, manifest.shapes))
        raise UserError(f"model.modalities: {actual}: must be {needed}, whose latents the shards hold")
    return manifest.shapes


def _rows(latents: LatentSample) -> list[LatentSample]:
    """Return the samples (C, H, W) of the batch ``latents`` (B, C, H, W)."""
    parts = latents.parts
    count = len(next(iter(parts.values()))[0])
    return [
        LatentSample.of({part: (mean[row], logvar[row]) for part, (mean, logvar) in parts.items()})
        for row in range(count)
    ]
