"""The description of a trained DiT, which says all that sampling needs besides weights, and its autoencoder's place.

description = DiTDescription.read("runs/dit_S")   # of a run, checkpoint or weights folder
folder = find_autoencoder(description)            # of the autoencoder that made the latents, checked
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mmldm_scale.common import portable_paths
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, by_modality
from mmldm_scale.config import DecodingConfig, DiffusionConfig, DiTConfig, MediaConfig, Sampling
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.normalise import Statistics
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.diffusion.tasks import GenerationTask, check_task
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.decoding import check_decoding
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.dit import layout_problem
from mmldm_scale.sampling.windows import sample_media, window_count

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

    def context_arguments(
        self,
        labels: Sequence[str | int],
        embeddings: Sequence[Tensor],
        device: torch.device,
        name: str = "embeddings",
    ) -> dict[str, Tensor]:
        """Return the DiT's context arguments for a batch; empty if all samples have the null context.

        Args:
            labels: the class of each sample, by name or index; empty: no classes.
            embeddings: of each sample's text, (n, context_width) with n from 1 to context_tokens; empty: no texts.
            name: of the user's argument for ``embeddings``, for messages.

        Raises:
            UserError: the model has no such class, takes no texts, or takes embeddings of another shape.
        """
        if labels:
            return {"label": torch.tensor([self.class_number(label) for label in labels], device=device)}
        if not embeddings:
            return {}
        if self.context != "text":
            raise UserError(f"{name}: the model in {self.folder} was not trained on texts, but {self.context}")
        tokens, width = self.model.context_tokens, self.model.context_width
        context = torch.zeros(len(embeddings), tokens, width, device=device)
        for row, embedding in zip(context, embeddings, strict=True):
            if embedding.ndim != 2 or not 1 <= len(embedding) <= tokens or embedding.shape[1] != width:
                shape = tuple(embedding.shape)
                raise UserError(f"{name}: {shape}: must be of shape (n, {width}) with n from 1 to {tokens}")
            row[: len(embedding)] = embedding
        return {"context": context, "context_length": torch.tensor([*map(len, embeddings)], device=device)}

    def class_number(self, label: str | int) -> int:
        """Return the index of the class ``label``, its name or index; raise UserError if the model has no such one."""
        if isinstance(label, int):
            if not 0 <= label < len(self.classes):
                raise UserError(f"class {label}: the model in {self.folder} has {len(self.classes)} classes, from 0")
            return label
        if label in self.classes:
            return self.classes.index(label)
        known = f"its classes are {', '.join(self.classes)}" if self.classes else "it was not trained on classes"
        raise UserError(f"label {label!r:.80}: no class of the model in {self.folder}; {known}")


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
