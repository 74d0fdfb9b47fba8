"""From trained weights to clips: the DiT generates latents; autoencoder and vocoder decode them to frames and sound.

    pipeline = Pipeline.from_pretrained("runs/dit_S", Sampling(steps=50), device="cuda")
    clips = pipeline.generate("svg", indices=range(8))

    long, *_ = pipeline.generate("svg", indices=[0], seconds=16)  # of a model that continues clips

The noise of each sample is a function of (seed, task, index, window): sample 7 is the same in whichever batch and job
it is generated, up to the rounding of batched arithmetic. The first window of a long sample has the noise of a short
one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mmldm_scale.common import portable_paths, rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.config import DecodingConfig, DiffusionConfig, DiTConfig, MediaConfig, Sampling
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.normalise import Statistics, normalise, restore
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.diffusion.tasks import GIVEN, TASKS, GenerationTask, check_task
from mmldm_scale.media.audio_image import AudioImage, frame_signals, waveforms
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.pixels import to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.autoencoder.decoding import check_decoding
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import DiT, layout_problem
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.sampling.windows import cut, join_frames, join_spectrograms, noise_stream, sample_media, window_count

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class DiTDescription:
    """The metadata in a DiT's weights folder: all that sampling needs to know besides the weights."""

    folder: Path
    model: DiTConfig
    diffusion: DiffusionConfig
    audio_shape: Shape | None  # None: the model has no audio
    video_shape: Shape | None  # likewise
    statistics: dict[Modality, Statistics]  # of the model's modalities
    media: MediaConfig
    autoencoder: dict[str, str]  # "path" (portable) and "fingerprint" of the autoencoder that made the latents
    context: str  # kind of context that the DiT was trained with: "none", "class" or "text"
    classes: list[str]  # names of its classes, if the context is a class

    @classmethod
    def read(cls, checkpoint: str | Path) -> "DiTDescription":
        """Read the description of the DiT in a run, checkpoint or weights folder.

        Raises:
            UserError: there is none, it is of another kind, or its description is incomplete.
        """
        folder = pretrained.find(checkpoint, "dit")
        stored = {"context": {"kind": "none", "classes": []}, **pretrained.read_config(folder, "dit")}
        problem = layout_problem(stored)
        if problem:
            raise UserError(f"{folder}: {problem}")
        try:
            model = _parse(DiTConfig, stored["model"])
            shapes = {name: _parse_shape(stored[f"{name}_shape"]) for name in model.modalities}
            return cls(
                folder=folder,
                model=model,
                diffusion=_parse(DiffusionConfig, stored["diffusion"]),
                audio_shape=shapes.get("audio"),
                video_shape=shapes.get("video"),
                statistics={name: stored["statistics"][name] for name in shapes},
                media=_parse(MediaConfig, stored["media"]),
                autoencoder={name: str(stored["autoencoder"][name]) for name in ("path", "fingerprint")},
                context=str(stored["context"]["kind"]),
                classes=[str(name) for name in stored["context"]["classes"]],
            )
        except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / pretrained.CONFIG}: describes no DiT of this version: {reason}") from None

    @property
    def shapes(self) -> dict[Modality, Shape]:
        """(C, H, W) of the latents of the model's modalities."""
        return by_modality(self.audio_shape, self.video_shape)

    def check_task(self, task: GenerationTask) -> None:
        """Raise UserError, with the tasks that the model can do, unless it can do ``task``."""
        check_task(task, self.shapes, self.model.continuation, str(self.folder))

    def sample_media(self, seconds: float | None) -> MediaConfig:
        """Return the format of samples of ``seconds``; None: of one clip.

        Raises:
            UserError: ``seconds`` is out of range, or the model does not continue clips and they are longer than one.
        """
        whole = sample_media(self.media, seconds)
        if window_count(self.media, whole) > 1 and not self.model.continuation:
            raise UserError(
                f"--seconds {seconds:g}: the model in {self.folder} has model.continuation=false and makes clips of "
                f"{self.media.seconds:g} s; longer samples need one trained with configs/dit/long.yaml"
            )
        return whole

    def class_number(self, label: str) -> int:
        """Return the index of the class named ``label``; raise UserError if the model has no such class."""
        if label in self.classes:
            return self.classes.index(label)
        known = f"its classes are {', '.join(self.classes)}" if self.classes else "it was not trained on classes"
        raise UserError(f"label {label!r:.80}: no class of the model in {self.folder}; {known}")


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
        context = self._context(labels, embeddings)
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

    def _context(self, labels: Sequence[str], embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the DiT's context arguments for a batch; empty if all samples have the null context."""
        if labels:
            return {"label": torch.tensor([self.description.class_number(name) for name in labels], device=self.device)}
        if not embeddings:
            return {}
        model, kind = self.description.model, self.description.context
        if kind != "text":
            raise UserError(f"embeddings: the model in {self.description.folder} was not trained on texts, but {kind}")
        tokens, width = model.context_tokens, model.context_width
        context = torch.zeros(len(embeddings), tokens, width, device=self.device)
        for row, embedding in zip(context, embeddings, strict=True):
            if embedding.ndim != 2 or not 1 <= len(embedding) <= tokens or embedding.shape[1] != width:
                shape = tuple(embedding.shape)
                raise UserError(f"embeddings: {shape}: must be of shape (n, {width}) with n from 1 to {tokens}")
            row[: len(embedding)] = embedding
        return {"context": context, "context_length": torch.tensor([*map(len, embeddings)], device=self.device)}

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


def check_settings(description: DiTDescription, settings: Sampling) -> None:
    """Raise UserError if the samplers of ``settings`` do not fit this DiT; nothing is loaded for that."""
    get_sampler(settings.sampler, noise_process(description.diffusion), settings.steps)
    check_decoding(settings.decoding)


def find_autoencoder(
    description: DiTDescription, path: str | Path | None = None, decoding: DecodingConfig | None = None
) -> Path:
    """Return the weights folder of the autoencoder that made the DiT's latents, at ``path`` or its path at that time.

    One whose signal decoder was distilled from that one's decodes the same latents.

    Args:
        decoding: how it is to decode; None: not at all.

    Raises:
        UserError: there is no autoencoder, it is a different one, or it cannot decode so.
    """
    known, folder = description.autoencoder, _autoencoder_folder(description, path)
    distillation = Distillation.read(folder)
    is_students = distillation is not None and distillation.teacher == known["fingerprint"]
    fingerprint = known["fingerprint"] if is_students else pretrained.fingerprint(folder)
    if fingerprint != known["fingerprint"]:
        raise UserError(
            f"{folder}: is not the autoencoder that made the DiT's latents (fingerprint {fingerprint[:12]}…, not "
            f"{known['fingerprint'][:12]}…); its path was {known['path']}"
        )
    if decoding is not None:
        check_decoding(decoding, distillation)
    return folder


def distilled_decoder(description: DiTDescription, path: str | Path | None = None) -> str | None:
    """Return the fingerprint of the autoencoder that decodes the latents if its signal decoder is distilled.

    None: it is the one that made the latents; or there is none, which :func:`find_autoencoder` refuses.
    """
    try:
        folder = _autoencoder_folder(description, path)
    except UserError:
        return None
    return pretrained.fingerprint(folder) if Distillation.read(folder) else None


def _autoencoder_folder(description: DiTDescription, path: str | Path | None) -> Path:
    """Return the weights folder of the autoencoder at ``path``, or where it was; raise UserError if there is none."""
    known = Path(description.autoencoder["path"])
    try:
        return pretrained.find(path or portable_paths.find(known, description.folder), "autoencoder")
    except UserError as error:
        raise UserError(
            str(error) if path else f"{error}; --autoencoder DIR names its new place (in training: preview.autoencoder)"
        ) from None


def _parse(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Return ``values`` as an instance of the configuration dataclass ``schema``, checked."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(config, schema)
    return config


def _parse_shape(values: Sequence[Any]) -> Shape:
    channels, height, width = map(int, values)
    return channels, height, width
