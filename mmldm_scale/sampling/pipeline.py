"""From trained weights to clips: the DiT makes latents; the autoencoder and a vocoder make pictures and sound of them.

    pipeline = Pipeline.from_pretrained("runs/dit_S", Sampling(steps=50), device="cuda")
    clips = pipeline.generate("svg", indices=range(8))

Each sample has its own noise, keyed by (seed, task, its index): sample 7 is the same in whichever batch and job it is
made, up to the rounding of batched arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig, DiTConfig, GenerationTask, MediaConfig, Sampling
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.normalise import Statistics, normalise, restore
from mmldm_scale.diffusion.sampler import GIVEN, Latents, sample_latents
from mmldm_scale.media.audio_image import AudioImage, signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.autoencoder.decoding import sampler
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import DiT, Shape
from mmldm_scale.models.precision import DTYPES


@dataclass(frozen=True)
class Description:
    """What the weights folder of a DiT says of it."""

    folder: Path
    model: DiTConfig
    diffusion: DiffusionConfig
    audio_shape: Shape
    video_shape: Shape
    statistics: dict[str, Statistics]  # of "audio" and "video"
    media: MediaConfig
    autoencoder: dict[str, str]  # path and fingerprint of the one that the latents came from
    context: str  # what its context is made of: "none", "class" or "text"
    classes: list[str]  # names of the classes that it may be made of

    @classmethod
    def read(cls, checkpoint: str | Path) -> "Description":
        """Read the description of the DiT in a run, checkpoint or weights folder.

        Raises:
            UserError: there is none, it is of another kind, or its description is not whole.
        """
        folder = pretrained.find(checkpoint, "dit")
        stored = {"context": {"kind": "none", "classes": []}, **pretrained.read_config(folder, "dit")}
        try:
            return cls(
                folder=folder,
                model=_configured(DiTConfig, stored["model"]),
                diffusion=_configured(DiffusionConfig, stored["diffusion"]),
                audio_shape=tuple(map(int, stored["audio_shape"])),
                video_shape=tuple(map(int, stored["video_shape"])),
                statistics={name: stored["statistics"][name] for name in ("audio", "video")},
                media=_configured(MediaConfig, stored["media"]),
                autoencoder={name: str(stored["autoencoder"][name]) for name in ("path", "fingerprint")},
                context=str(stored["context"]["kind"]),
                classes=[str(name) for name in stored["context"]["classes"]],
            )
        except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / pretrained.CONFIG}: describes no DiT of this version: {reason}") from None

    def class_number(self, label: str) -> int:
        """Return the number of the class named ``label``; raise UserError if the model knows none of that name."""
        if label in self.classes:
            return self.classes.index(label)
        known = f"it knows {', '.join(self.classes)}" if self.classes else "it was not trained on classes"
        raise UserError(f"label {label!r:.80}: no class of the model in {self.folder}; {known}")


class Pipeline:
    """A DiT with the autoencoder of its latents and a vocoder, on one device."""

    def __init__(
        self, description: Description, dit: DiT, autoencoder: Autoencoder, settings: Sampling, device: torch.device
    ) -> None:
        self.description, self.settings, self.device = description, settings, device
        self.media = description.media
        self.dit, self.autoencoder = dit, autoencoder
        self.process = noise_process(description.diffusion)
        self.audio_image = AudioImage(self.media)
        self.vocoder = load_vocoder(settings.vocoder, self.media.audio)

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
            autoencoder: where that autoencoder lies now; None: where it lay when the latents were made.

        Raises:
            UserError: something is missing, damaged or of another kind; the autoencoder is not the one that made the
                latents; the settings cannot work here.
        """
        settings, device = settings or Sampling(), torch.device(device)
        description = Description.read(checkpoint)
        dtype = DTYPES[settings.precision]
        noise_process(description.diffusion).timesteps(settings.steps)  # says at once what cannot work
        sampler(settings.decoding)
        choose_backend(settings.attention, device, dtype, description.model.width // description.model.heads)
        folder = find_autoencoder(description, autoencoder)
        model = replace(description.model, attention=settings.attention)
        dit = DiT(model, description.audio_shape, description.video_shape, len(description.classes))
        pretrained.load_into(dit, description.folder)
        decoder = Autoencoder.from_pretrained(folder, dtype, device)
        torch.backends.cudnn.deterministic = True  # a sample made again is the same
        return cls(description, dit.to(device, dtype).eval(), decoder, settings, device)

    @torch.no_grad()
    def generate(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        inputs: Sequence[Clip] = (),
        labels: Sequence[str] = (),
        embeddings: Sequence[Tensor] = (),
    ) -> list[Clip]:
        """Make the samples ``indices`` of ``task`` in one batch.

        Args:
            inputs: for a2v and v2a one clip for each sample, cut as ``self.media`` says. What is given of it, sound
                or pictures, is taken into the result as it is.
            labels: for a model trained on classes, the name of each sample's; none: without a class.
            embeddings: for a model trained on texts, each sample's, (n ≤ context_tokens, context_width), by the
                encoder that made those of its training; none: without a text.

        Raises:
            UserError: the model knows no class of that name, or no texts, or embeddings of another shape.
        """
        made = self._decode(task, indices, self.latents(task, indices, inputs, labels, embeddings))
        if GIVEN[task] == "audio":
            return [replace(clip, waveform=source.waveform) for clip, source in zip(made, inputs, strict=True)]
        if GIVEN[task] == "video":
            return [replace(clip, frames=source.frames) for clip, source in zip(made, inputs, strict=True)]
        return made

    @torch.no_grad()
    def latents(
        self,
        task: GenerationTask,
        indices: Sequence[int],
        inputs: Sequence[Clip] = (),
        labels: Sequence[str] = (),
        embeddings: Sequence[Tensor] = (),
    ) -> Latents:
        """Return the normalised latents that :meth:`generate` makes clips of."""
        given, count = GIVEN[task], len(indices)
        if given and len(inputs) != count:
            raise ValueError(f"{task} needs one input for each sample: {count}, not {len(inputs)}")
        for name, values in (("labels", labels), ("embeddings", embeddings)):
            if len(values) not in (0, count):
                raise ValueError(f"{name}: one is needed for each sample: {count}, not {len(values)}")
        noise = Latents(
            self._noise(f"sample/{task}/audio", indices, self.description.audio_shape),
            self._noise(f"sample/{task}/video", indices, self.description.video_shape),
        )
        guidance = {"audio": self.settings.audio_guidance, "video": self.settings.video_guidance}
        condition = self._encode(inputs, given) if given else None
        context = self._context(labels, embeddings)
        return sample_latents(self.dit, self.process, task, noise, self.settings.steps, guidance, condition, context)

    def _context(self, labels: Sequence[str], embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the DiT is told of the context of each sample; nothing: all have the null context."""
        if labels:
            return {"label": torch.tensor([self.description.class_number(name) for name in labels], device=self.device)}
        if not embeddings:
            return {}
        model, kind = self.description.model, self.description.context
        if kind != "text":
            raise UserError(f"embeddings: the model in {self.description.folder} was not trained on texts, but {kind}")
        tokens, width = model.context_tokens, model.context_width
        context = torch.zeros(len(embeddings), tokens, width, device=self.device)
        for one, embedding in zip(context, embeddings, strict=True):
            if embedding.ndim != 2 or not 1 <= len(embedding) <= tokens or embedding.shape[1] != width:
                raise UserError(f"embeddings: (n, {width}) fits, n from 1 to {tokens}, not {tuple(embedding.shape)}")
            one[: len(embedding)] = embedding
        return {"context": context, "context_length": torch.tensor([*map(len, embeddings)], device=self.device)}

    def _encode(self, clips: Sequence[Clip], modality: str) -> Tensor:
        """Return the normalised latents (B, C, H, W) of one modality of ``clips``: the means of their posteriors."""
        posteriors = self.autoencoder.encode(*signals(clips, self.audio_image, self.device))
        return normalise(getattr(posteriors, modality).mean, self.description.statistics[modality])

    def _decode(self, task: GenerationTask, indices: Sequence[int], latents: Latents) -> list[Clip]:
        statistics, shape = self.description.statistics, self.autoencoder.noise_shape
        frames, audio_image = self.autoencoder.decode(
            restore(latents.audio, statistics["audio"]),
            restore(latents.video, statistics["video"]),
            self._noise(f"decode/{task}/audio", indices, shape),
            self._noise(f"decode/{task}/video", indices, (self.media.frames, *shape)),
            self.settings.decoding,
        )
        waveforms = self.vocoder(self.audio_image.to_decibels(audio_image.float()), self.media.audio_samples)
        pictures = to_frames(frames).cpu().numpy()  # (B, F, S, S, 3)
        return [Clip(*pair) for pair in zip(pictures, waveforms.float().cpu().numpy(), strict=True)]

    def _noise(self, stream: str, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return standard normal noise (B, *shape), each sample's own."""
        noise = rng.standard_normal(self.settings.seed, stream, indices, shape)
        # Copied into torch's own memory: MKL promises the same sums again only for arrays aligned to 64 bytes.
        return torch.from_numpy(noise).clone().to(self.device)


def find_autoencoder(description: Description, path: str | Path | None = None) -> Path:
    """Return the weights folder of the autoencoder that made the DiT's latents, at ``path`` or where it lay then.

    Raises:
        UserError: there is none, or it is another one.
    """
    known = description.autoencoder
    try:
        folder = pretrained.find(path or known["path"], "autoencoder")
    except UserError as error:
        raise UserError(
            str(error) if path else f"{error}; --autoencoder says where it lies now (in training: preview.autoencoder)"
        ) from None
    found = pretrained.fingerprint(folder)
    if found != known["fingerprint"]:
        raise UserError(
            f"{folder}: is not the autoencoder that made the DiT's latents (fingerprint {found[:12]}…, not "
            f"{known['fingerprint'][:12]}…); that one lay in {known['path']}"
        )
    return folder


def _configured(schema: type, values: dict) -> object:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
