"""The hierarchical multi-modal autoencoder (section 3.1): clips ⇄ one audio and one video perceptual latent.

``Autoencoder.from_pretrained("runs/autoencoder")`` loads a trained one. :meth:`Autoencoder.encode` returns the
posteriors that latent shards hold; :meth:`Autoencoder.decode` turns latents into frames and an audio image, from noise
that the caller draws. At 256² pixels and f = 8 the latents are 16×8×8 (audio) and 16×16×16 (video).

``config.modalities`` says which of the two a model has. Methods take and return a pair, for audio and video; a model of
one modality alone takes and returns None for the other. That has no contrastive head and no
semantic tokens to read; where clips have classes, a class is predicted from its own semantics and read (all of this is
ours).

Shapes: B clips of F frames of S×S pixels; KL-VAE latents (c, s, s), s = S/f; perceptual latents (B, C, H_a, W_a) and
(B, C, H_v, W_v); N pictures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from omegaconf import OmegaConf
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import OTHER, Modality, as_pair, by_modality
from mmldm_scale.config import AutoencoderConfig, DecodingConfig, EncoderConfig, MediaConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder import pictures as pictures_of_clips
from mmldm_scale.models.autoencoder.decoder import Condition, SignalDecoder
from mmldm_scale.models.autoencoder.decoding import denoise
from mmldm_scale.models.autoencoder.encoders import AudioEncoder, VideoEncoder
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.models.autoencoder.semantic import ClassificationHead, ContrastiveHead, Projector, Semantics
from mmldm_scale.models.autoencoder.stable_diffusion import build_kl_vae

# What the weights folders mean that were written before a key of AutoencoderConfig existed.
OLDER_MEANING: dict[str, Any] = {"detach_projectors": False, "decoder": {"features": "skips"}}
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error


@dataclass(frozen=True)
class Posteriors:
    """Posteriors of the perceptual latents: ``audio`` (B, C, H_a, W_a) and ``video`` (B, C, H_v, W_v)."""

    audio: Gaussian | None = None
    video: Gaussian | None = None

    @property
    def present(self) -> dict[Modality, Gaussian]:
        """The posteriors by modality, without the missing one."""
        return by_modality(self.audio, self.video)

    @property
    def means(self) -> tuple[Tensor | None, Tensor | None]:
        """The means of audio and video, as :meth:`Autoencoder.decode` takes them."""
        return as_pair({name: posterior.mean for name, posterior in self.present.items()})


class Autoencoder(nn.Module):
    """Frozen KL-VAE, audio and video encoder, projectors into the semantic space with their heads, signal decoder.

    Args:
        vae: the KL-VAE, which is frozen.
        classes: names of the clips' classes; empty: there is no classification head, and every class is unknown.

    Attributes:
        modalities: those that it encodes and decodes, in the order of all dictionaries by modality.
        shapes: (C, H, W) of each modality's perceptual latent.
        noise_shape: (c, s, s) of a picture's KL-VAE latent.

    Raises:
        UserError: ``media.size`` is not divisible by the reductions of KL-VAE and encoders, or a key frame is not one
            of a clip's frames.
    """

    def __init__(
        self, config: AutoencoderConfig, media: MediaConfig, vae: AutoencoderKL, classes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.config, self.media, self.classes = config, media, tuple(classes)
        self.kl_vae = vae.eval().requires_grad_(False)
        channels, size = vae.config["latent_channels"], _divide(media.size, kl_vae.reduction(vae), "the KL-VAE")
        self.noise_shape: Shape = (channels, size, size)
        self.modalities: tuple[Modality, ...] = tuple(config.modalities)
        encoders = by_modality(config.audio_encoder, config.video_encoder)
        self.shapes: dict[Modality, Shape] = {
            name: _latent_shape(encoders[name], config.latent_channels, size, f"model.{name}_encoder")
            for name in self.modalities
        }
        if "audio" in self.modalities:
            self.audio_encoder = AudioEncoder(config, channels)
        if "video" in self.modalities:
            _check_key_frames(config.video_encoder.key_frames, media.frames)
            self.video_encoder = VideoEncoder(config, self.noise_shape, media.frames)
        if self.has_semantics:
            for name, shape in self.shapes.items():
                self.add_module(f"{name}_projector", Projector(shape, config.semantic_width))
            if self.has_contrastive_head:
                self.contrastive_head = ContrastiveHead(config.semantic_width, config.contrastive_width)
            if self.classes:
                self.classification_head = ClassificationHead(
                    config.semantic_width, len(self.classes), len(self.modalities)
                )
        self.decoder = SignalDecoder(config, self.shapes, self.noise_shape, media.frames, len(self.classes))
        if config.activation_checkpointing:
            self.kl_vae.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> "Autoencoder":
        """Set the training mode of all parts but the KL-VAE, which stays in evaluation mode."""
        super().train(mode)
        self.kl_vae.eval()
        return self

    def set_kl_vae_aside(self) -> None:
        """Make the KL-VAE a plain attribute, outside the module's parameters and state and what ``to`` casts."""
        self.__dict__["kl_vae"] = self._modules.pop("kl_vae")

    @property
    def audio_shape(self) -> Shape | None:
        """(C, H_a, W_a) of the audio latent; None if the model has no audio."""
        return self.shapes.get("audio")

    @property
    def video_shape(self) -> Shape | None:
        """(C, H_v, W_v) of the video latent; None if the model has no video."""
        return self.shapes.get("video")

    @property
    def has_semantics(self) -> bool:
        """Whether there are projectors: a single modality's would serve nothing but the classification."""
        return self.config.semantics and (len(self.modalities) > 1 or bool(self.classes))

    @property
    def has_contrastive_head(self) -> bool:
        """Whether there is a contrastive head, which compares two modalities."""
        return self.config.semantics and len(self.modalities) > 1 and bool(self.config.contrastive_width)

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the parameters; the KL-VAE may have another."""
        return next(self.decoder.parameters()).dtype

    @property
    def temperature(self) -> Tensor:
        """τ of Eq. 1, learned: a positive float32 scalar () of at most 100. Needs a contrastive head."""
        return self.contrastive_head.temperature()

    @torch.no_grad()
    def picture_latents(self, pictures: Tensor) -> Tensor:
        """Return the scaled KL-VAE latents (N, c, s, s) float32 of ``pictures`` (N, 3, S, S) in [-1, 1]."""
        return kl_vae.encode(self.kl_vae, pictures)

    def picture(self, latents: Tensor) -> Tensor:
        """Return the pictures (N, 3, S, S) float32, about in [-1, 1], of scaled KL-VAE latents (N, c, s, s).

        The pictures are not clamped, so that gradients reach ``latents`` everywhere.
        """
        return kl_vae.render(self.kl_vae, latents)

    def posteriors(self, frame_latents: Tensor | None, audio_latent: Tensor | None) -> Posteriors:
        """Return the posteriors for KL-VAE latents of frames (B, F, c, s, s) and audio images (B, c, s, s)."""
        latents = self._by_modality(audio_latent, frame_latents)
        return Posteriors(**{name: self._posterior(name, latent) for name, latent in latents.items()})

    def semantics(self, audio_latent: Tensor | None, video_latent: Tensor | None) -> Semantics | None:
        """Return the semantic tokens of latents (B, C, H_a, W_a) and (B, C, H_v, W_v).

        None if the model has no projectors (:attr:`has_semantics`).
        """
        if not self.has_semantics:
            return None
        latents = self._by_modality(audio_latent, video_latent)
        if self.config.detach_projectors:
            latents = {name: latent.detach() for name, latent in latents.items()}
        return Semantics(**{name: self._part(name, "projector", latent) for name, latent in latents.items()})

    def classify(self, semantics: Semantics) -> Tensor:
        """Return the logits (B, n) float32 of the model's n ``classes``; n must be at least 1."""
        return self.classification_head(semantics)

    def contrast(self, semantics: Semantics) -> tuple[Tensor, Tensor]:
        """Return f_co(s_a) and f_co(s_v) of Eq. 1: vectors of length 1, each (B, config.contrastive_width) float32."""
        audio, video = (self.contrastive_head(tokens) for tokens in semantics.present.values())
        return audio, video

    def conditions(
        self,
        audio_latent: Tensor | None,
        video_latent: Tensor | None,
        frames: Tensor | None,
        semantics: Semantics | None,
        labels: Tensor | None = None,
    ) -> tuple[Condition, ...]:
        """Return the decoder's conditions for the audio images (N = B) and for ``frames`` (N = B·K).

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            frames: (B, K) int64, indices of the frames to decode, 0 to F - 1; None: no video is decoded.
            semantics: of these latents; each modality is decoded with the other's.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: all unknown.

        Returns:
            One condition for each of :attr:`modalities`, in this order; none for video if ``frames`` is None.
        """
        latents = self._by_modality(audio_latent, video_latent)
        tokens = semantics.present if semantics else {}
        first = next(iter(latents.values()))
        only = torch.zeros(len(first), 1, dtype=torch.long, device=first.device)  # an audio image is the only "frame"
        indices = by_modality(only, frames)
        return tuple(
            self.decoder.condition(name, latent, indices[name], tokens.get(OTHER[name]), labels)
            for name, latent in latents.items()
            if name in indices
        )

    @torch.no_grad()
    def encode(self, frames: Tensor | None, audio_image: Tensor | None) -> Posteriors:
        """Return the posteriors of ``frames`` (B, F, 3, S, S) and ``audio_image`` (B, 3, S, S), both in [-1, 1]."""
        sound = None if audio_image is None else audio_image[:, None]  # (B, 1, 3, S, S)
        pictures = pictures_of_clips.join(self._by_modality(sound, frames))  # (B, P, 3, S, S)
        return self.posteriors_of(self.clip_latents(pictures))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Gaussian:
        """Return the video posterior of ``frames`` (B, F, 3, S, S) in [-1, 1], without any sound; needs video."""
        return self._posterior("video", self.clip_latents(frames))

    @torch.no_grad()
    def encode_sound(self, audio_image: Tensor) -> Gaussian:
        """Return the audio posterior of ``audio_image`` (B, 3, S, S) in [-1, 1], without any frames; needs audio."""
        return self._posterior("audio", self.picture_latents(audio_image))

    def clip_latents(self, pictures: Tensor) -> Tensor:
        """Return the scaled KL-VAE latents (B, P, c, s, s) float32 of clips' ``pictures`` (B, P, 3, S, S)."""
        return self.picture_latents(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])

    def posteriors_of(self, latents: Tensor) -> Posteriors:
        """Return the posteriors of clips by the KL-VAE latents (B, P, c, s, s) of all their pictures."""
        parts = pictures_of_clips.split(latents, self.modalities)
        audio, frames = as_pair(parts)
        return self.posteriors(frames, None if audio is None else audio.squeeze(1))

    @torch.no_grad()
    def decode(
        self,
        audio_latent: Tensor | None,
        video_latent: Tensor | None,
        audio_noise: Tensor | None,
        video_noise: Tensor | None,
        decoding: DecodingConfig,
        labels: Tensor | None = None,
        semantics: Semantics | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Decode the perceptual latents of B clips.

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            audio_noise: (B, c, s, s) standard normal; None: audio is not decoded.
            video_noise: (B, F, c, s, s) standard normal; None: video is not decoded.
            decoding: sampler, steps, guidance, and how many pictures the U-Net processes together.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: the classes predicted from
                ``semantics``, if the model has classes.
            semantics: semantic tokens to decode with; None: those of the latents.

        Returns:
            Frames (B, F, 3, S, S) and audio images (B, 3, S, S), both float32 in [-1, 1]; None for a modality without
            noise. The latents are needed of both that the model has: each is decoded with the other's semantics.
        """
        latents = {name: part.to(self.dtype) for name, part in self._by_modality(audio_latent, video_latent).items()}
        noise = by_modality(audio_noise, None if video_noise is None else video_noise.flatten(0, 1))
        semantics = semantics or self.semantics(*as_pair(latents))
        if labels is None and semantics and self.classes:
            labels = self.classify(semantics).argmax(dim=1)
        clips = (0, 0) if video_noise is None else video_noise.shape[:2]  # B and F
        index = None if video_noise is None else torch.arange(clips[1], device=video_noise.device).expand(clips[0], -1)
        conditions = self.conditions(*as_pair(latents), index, semantics, labels)
        if "audio" in latents and "audio" not in noise:
            conditions = conditions[1:]
        decoded = self._denoise(noise, conditions, decoding)  # (B + B·F, c, s, s), audio images first
        groups = decoded.split(decoding.pictures or len(decoded))
        pictures = torch.cat([kl_vae.decode(self.kl_vae, group) for group in groups])  # (B + B·F, 3, S, S)
        parts = dict(zip(noise, pictures.split([len(part) for part in noise.values()]), strict=True))
        audio_image, frames = as_pair(parts)
        return None if frames is None else frames.unflatten(0, clips), audio_image

    def _denoise(
        self, noises: Mapping[Modality, Tensor], conditions: Sequence[Condition], decoding: DecodingConfig
    ) -> Tensor:
        """Return the KL-VAE latents (N_a + N_v, c, s, s) of audio images and frames.

        Args:
            noises: of the audio images (N_a, c, s, s) and of the frames (N_v, c, s, s), standard normal, as far as they
                are decoded.
            conditions: of the same.
        """
        noise = list(noises.values())
        scales = [getattr(decoding, f"{name}_guidance") for name in noises]
        guidance = [part.new_full((len(part),), scale) for part, scale in zip(noise, scales, strict=True)]
        nulls: list[Condition] = []
        if max(scales) > 1:
            nulls = [self.decoder.null(name, part) for name, part in zip(noises, conditions, strict=True)]
        if self.config.shared_decoder:  # the U-Net processes pictures of both modalities together
            noise, guidance = [torch.cat(noise)], [torch.cat(guidance)]
            conditions, nulls = [Condition.join(conditions)], [Condition.join(nulls)] if nulls else []
        null_or_none: Sequence[Condition | None] = nulls or [None] * len(noise)
        parts = zip(noise, conditions, null_or_none, guidance, strict=True)
        return torch.cat(
            [denoise(self.decoder, start, condition, null, decoding, scale) for start, condition, null, scale in parts]
        )

    def _by_modality(self, audio: Tensor | None, video: Tensor | None) -> dict[Modality, Tensor]:
        """Return the values by modality; raise ValueError unless they are there for the model's modalities alone."""
        values = by_modality(audio, video)
        if tuple(values) != self.modalities:
            raise ValueError(f"values are needed of {' and '.join(self.modalities)}, not of {' and '.join(values)}")
        return values

    def _posterior(self, modality: Modality, latents: Tensor) -> Gaussian:
        """Return a modality's posterior for the KL-VAE latents of its pictures, as :meth:`posteriors` takes them."""
        return Gaussian.from_moments(self._part(modality, "encoder", latents.to(self.dtype)))

    def _part(self, modality: Modality, part: str, latent: Tensor) -> Tensor:
        """Return the output of a modality's "encoder" or "projector" for its ``latent``."""
        output: Tensor = self.get_submodule(f"{modality}_{part}")(latent)
        return output

    def save_pretrained(self, folder: Path) -> None:
        """Write the whole model, including the KL-VAE, as a weights folder of kind "autoencoder"."""
        save(folder, self.config, self.media, self.kl_vae, self.classes, self.state_dict())

    @classmethod
    def from_description(cls, folder: Path) -> "Autoencoder":
        """Return the autoencoder that a weights folder describes, with random weights.

        Raises: as :meth:`from_pretrained`.
        """
        stored = pretrained.read_config(folder, "autoencoder")
        try:
            config = _restore(AutoencoderConfig, OLDER_MEANING, stored["model"])
            media = _restore(MediaConfig, stored["media"])
            vae = build_kl_vae(stored["kl_vae"], folder / pretrained.CONFIG)
            return cls(config, media, vae, stored["classes"])
        except UserError:
            raise
        except Exception as error:  # layers of impossible sizes raise anything
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            raise UserError(f"{folder / pretrained.CONFIG}: does not describe an autoencoder: {reason}") from None

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "Autoencoder":
        """Load the autoencoder of a run, checkpoint or weights folder in evaluation mode.

        The KL-VAE stays in float32 with any ``dtype``, as its activations overflow float16.

        Raises:
            UserError: there is none at ``path``, it is of another kind, or it is damaged.
        """
        folder = pretrained.find(path, "autoencoder")
        model = cls.from_description(folder)
        pretrained.load_into(model, folder)
        model.to(device, dtype).kl_vae.float()
        return model.eval()


def save(
    folder: Path,
    config: AutoencoderConfig,
    media: MediaConfig,
    vae: AutoencoderKL,
    classes: Sequence[str],
    state: dict[str, Tensor],
) -> None:
    """Write ``state``, the tensors of a whole :class:`Autoencoder` by name, as a folder for ``from_pretrained``."""
    description = {
        "model": dataclasses.asdict(config),
        "media": dataclasses.asdict(media),
        "kl_vae": {key: value for key, value in vae.config.items() if not key.startswith("_")},
        "classes": list(classes),
    }
    pretrained.save(folder, "autoencoder", description, state)


def _restore(schema: type, *values: dict[str, Any]) -> Any:
    """Return the ``schema`` with ``values``, of which the later ones win."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *values))


def _latent_shape(encoder: EncoderConfig, channels: int, size: int, key: str) -> Shape:
    side = _divide(size, 2 ** (len(encoder.multipliers) - 1), key)
    return channels, side, side


def _check_key_frames(key_frames: list[int], frames: int) -> None:
    if not all(0 <= frame < frames for frame in key_frames):
        raise UserError(
            f"model.video_encoder.key_frames: must lie in 0..{frames - 1}, a clip's frames, not {key_frames}"
        )


def _divide(size: int, factor: int, reducer: str) -> int:
    if size % factor:
        raise UserError(f"media.size: {reducer} reduces {size} by {factor}; must be divisible")
    return size // factor
