"""From trained weights to clips: the DiT generates latents; autoencoder and vocoder decode them to frames and sound.

    pipeline = Pipeline.from_pretrained("runs/dit_S", Sampling(steps=50), device="cuda")
    clips = pipeline.generate("svg", indices=range(8))

    long, *_ = pipeline.generate("svg", indices=[0], seconds=16)  # of a model that continues clips

The noise of each sample is a function of (seed, task, index, window): sample 7 is the same in whichever batch and job
it is generated, up to the rounding of batched arithmetic. The first window of a long sample has the noise of a short
one.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.modalities import Modality, as_pair
from mmldm_scale.config import Sampling
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.normalise import normalise, restore
from mmldm_scale.diffusion.tasks import GIVEN, TASKS, GenerationTask
from mmldm_scale.media.audio_image import AudioImage, frame_signals, waveforms
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.pixels import to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.sampling.description import DiTDescription, check_settings, find_autoencoder
from mmldm_scale.sampling.windows import cut, join_frames, join_spectrograms, noise_stream, window_count


class Pipeline:
    """A DiT, the autoencoder of its latents and a vocoder, on one device."""

    def __init__(
        self, description: DiTDescription, dit: DiT, autoencoder: Autoencoder, settings: Sampling, device: torch.device
    ) -> None:
        self.description, self.settings, self.device = description, settings, device
        self.media = description.media
        self.dit, self.autoencoder = dit, autoencoder
        self.process = noise_process(description.diffusion)
        self.audio_image = AudioImage(self.media)
        self.vocoder = load_vocoder(settings.vocoder, self.media.audio) if "audio" in description.shapes else None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        settings: Sampling | None = None,
        autoencoder: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> "Pipeline":
        """Load the DiT of a run, checkpoint or weights folder, and the autoencoder that belongs to it.

        Args:
            autoencoder: path of that autoencoder; None: the path that it had when the latents were made.

        Raises:
            UserError: something is missing, damaged or of another kind; the autoencoder is not the one that made the
                latents; the settings cannot work here.
        """
        settings, device = settings or Sampling(), torch.device(device)
        description = DiTDescription.read(checkpoint)
        dtype = DTYPES[settings.precision]
        check_settings(description, settings)
        choose_backend(settings.attention, device, dtype, description.model.width // description.model.heads)
        folder = find_autoencoder(description, autoencoder, settings.decoding)
        model = replace(description.model, attention=settings.attention)
        dit = DiT(model, description.audio_shape, description.video_shape, len(description.classes))
        pretrained.load_into(dit, description.folder)
        decoder = Autoencoder.from_pretrained(folder, dtype, device)
        torch.backends.cudnn.deterministic = True  # a sample generated again is the same
        return cls(description, dit.to(device, dtype).eval(), decoder, settings, device)

    @torch.no_grad()
    def generate(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        inputs: Sequence[Clip] = (),
        labels: Sequence[str] = (),
        embeddings: Sequence[Tensor] = (),
        seconds: float | None = None,
    ) -> list[Clip]:
        """Generate the samples ``indices`` of ``task`` in one batch.

        Args:
            inputs: for a2v and v2a, one clip for each sample, as long as the sample; the given modality, sound or
                frames, is copied to the result. For a continuation, the clip before each sample, cut as ``self.media``
                says.
            labels: for a model trained on classes, the class name of each sample; empty: no classes.
            embeddings: for a model trained on texts, the embeddings of each sample's text, (n ≤ context_tokens,
                context_width), by the encoder that was used in training; empty: no texts.
            seconds: length of the samples; None: one clip. Longer ones are made window after window, each of which sees
                the one before it.

        Returns:
            One clip for each sample; of a model or task of one modality alone, with no frames or without sound.

        Raises:
            UserError: the model has no class of that name, takes no texts, or takes embeddings of another shape; it
                cannot do the task, or continues no clips and ``seconds`` is longer than one.
            ValueError: ``inputs``, ``labels`` or ``embeddings`` are not one for each sample.
        """
        windows = self.windows(task, indices, inputs, labels, embeddings, seconds)
        return self.with_given(task, self.join(task, indices, windows, seconds), inputs)

    def with_given(self, task: GenerationTask, clips: Sequence[Clip], inputs: Sequence[Clip]) -> list[Clip]:
        """Return the decoded ``clips`` with the modality that ``task`` is given copied from their ``inputs``."""
        if GIVEN[task] == "audio":
            return [replace(clip, waveform=source.waveform) for clip, source in zip(clips, inputs, strict=True)]
        if GIVEN[task] == "video":
            return [replace(clip, frames=source.frames) for clip, source in zip(clips, inputs, strict=True)]
        return list(clips)

    @torch.no_grad()
    def windows(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        inputs: Sequence[Clip] = (),
        labels: Sequence[str] = (),
        embeddings: Sequence[Tensor] = (),
        seconds: float | None = None,
    ) -> list[Latents]:
        """Return the normalised latents of each window of the samples; arguments and errors of :meth:`generate`."""
        count = window_count(self.media, self.description.sample_media(seconds))
        parts = [list(inputs)] * count  # by window: what latents() takes
        if GIVEN[task] and count > 1:
            parts = [list(clips) for clips in zip(*(cut(clip, self.media, count) for clip in inputs), strict=True)]
        made: list[Latents] = []
        for number, part in enumerate(parts):
            previous = made[-1] if made else None
            made.append(self.latents(task, indices, part, labels, embeddings, previous=previous, window=number))
        return made

    @torch.no_grad()
    def latents(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        inputs: Sequence[Clip] = (),
        labels: Sequence[str] = (),
        embeddings: Sequence[Tensor] = (),
        condition: Tensor | None = None,
        previous: Latents | None = None,
        window: int = 0,
    ) -> Latents:
        """Return the normalised latents that :meth:`decode` makes clips of; arguments and errors of :meth:`generate`.

        Args:
            condition: in place of ``inputs``, the normalised latents of the given modality, (B, C, H, W).
            previous: the normalised latents of the clips that are continued. None: those of the ``inputs`` if the task
                is a continuation, else none.
            window: number of the window in a long sample, from 0: which noise it has.
        """
        self.description.check_task(task)
        given, count = GIVEN[task], len(indices)
        seen = TASKS[task].previous if previous is None else ()
        if (seen or (given and condition is None)) and len(inputs) != count:
            raise ValueError(f"{task} needs one input for each sample: {count}, not {len(inputs)}")
        for name, values in (("labels", labels), ("embeddings", embeddings)):
            if len(values) not in (0, count):
                raise ValueError(f"{name}: one is needed for each sample: {count}, not {len(values)}")
        shapes, place = self.description.shapes.items(), noise_stream(window)
        noise = Latents(**{name: self._noise(f"sample/{task}/{name}{place}", indices, shape) for name, shape in shapes})
        guidance = {"audio": self.settings.audio_guidance, "video": self.settings.video_guidance}
        if given:
            condition = self._encode(inputs, given) if condition is None else condition.to(self.device)
        before = {name: self._encode(inputs, name) for name in seen} if previous is None else previous.present
        context = self.description.context_arguments(labels, embeddings, self.device)
        steps, sampler = self.settings.steps, self.settings.sampler
        return sample_latents(
            self.dit,
            self.process,
            task,
            noise,
            steps,
            guidance,
            condition,
            context,
            before,
            sampler=sampler,
            class_guidance=self.settings.class_guidance,
            guidance_interval=self.settings.guidance_interval,
        )

    def _encode(self, clips: Sequence[Clip], modality: Modality) -> Tensor:
        """Return the normalised latents (B, C, H, W) of one modality of ``clips``, the means of their posteriors.

        The clips need not have the other one.
        """
        if modality == "audio":
            posterior = self.autoencoder.encode_sound(self.audio_image.encode(waveforms(clips, self.device)))
        else:
            posterior = self.autoencoder.encode_frames(frame_signals(clips, self.device))
        return normalise(posterior.mean, self.description.statistics[modality])

    def decode(self, task: GenerationTask, indices: Sequence[int], latents: Latents) -> list[Clip]:
        """Return the clips of the normalised ``latents`` of the samples ``indices``, a given modality decoded, too."""
        return self.join(task, indices, [latents], names=TASKS[task].result)

    @torch.no_grad()
    def join(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        windows: Sequence[Latents],
        seconds: float | None = None,
        names: Collection[Modality] | None = None,
    ) -> list[Clip]:
        """Return the samples ``indices`` of ``task``, of ``seconds`` each, from the latents of their ``windows``.

        The spectrograms of all windows become one sound, so that it has no joints.

        Args:
            names: the modalities to decode; None: those that ``task`` generates.
        """
        whole = self.description.sample_media(seconds)
        names = TASKS[task].generated if names is None else names
        decoded = [self._decode(task, indices, latents, number, names) for number, latents in enumerate(windows)]
        pictures, sounds = [NO_FRAMES] * len(indices), [NO_SOUND] * len(indices)
        frames = [part for part, _ in decoded if part is not None]
        if frames:
            pictures = [join_frames(parts, whole) for parts in zip(*frames, strict=True)]  # (F, S, S, 3) each
        spectrograms = [part for _, part in decoded if part is not None]
        if spectrograms and self.vocoder is not None:
            waveforms = self.vocoder(join_spectrograms(spectrograms, self.media, whole), whole.audio_samples)
            sounds = list(waveforms.float().cpu().numpy())  # (samples,) each
        return [Clip(*parts) for parts in zip(pictures, sounds, strict=True)]

    def _decode(
        self, task: GenerationTask, indices: Sequence[int], latents: Latents, window: int, names: Collection[Modality]
    ) -> tuple[np.ndarray | None, Tensor | None]:
        """Return the frames (B, F, S, S, 3) uint8 and mel magnitudes (B, n_mels, T) in dB of one window.

        None for a modality that the model does not have, or that is not in ``names``.
        """
        statistics, shape = self.description.statistics, self.autoencoder.noise_shape
        restored = {name: restore(latent, statistics[name]) for name, latent in latents.present.items()}
        shapes: dict[Modality, tuple[int, ...]] = {"audio": shape, "video": (self.media.frames, *shape)}
        streams = {name: f"decode/{task}/{name}{noise_stream(window)}" for name in restored if name in names}
        noise = {name: self._noise(stream, indices, shapes[name]) for name, stream in streams.items()}
        frames, audio_image = self.autoencoder.decode(*as_pair(restored), *as_pair(noise), self.settings.decoding)
        return (
            None if frames is None else to_frames(frames).cpu().numpy(),
            None if audio_image is None else self.audio_image.to_decibels(audio_image.float()),
        )

    def _noise(self, stream: str, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return standard normal noise (B, *shape), a function of (seed, stream, index) for each sample."""
        noise = rng.standard_normal(self.settings.seed, stream, indices, shape)
        # Copied into torch's own memory: MKL repeats its sums exactly only for arrays aligned to 64 bytes.
        return torch.from_numpy(noise).clone().to(self.device)
