"""The hierarchical multi-modal autoencoder (section 3.1): clips ⇄ one audio and one video perceptual latent.

``Autoencoder.from_pretrained("runs/autoencoder")`` loads a trained one; :meth:`Autoencoder.encode` gives the posteriors
that the latent shards keep, :meth:`Autoencoder.decode` turns latents back into frames and an audio image with the noise
the caller hands in. At 256² with f = 8 the latents are 16×8×8 (audio) and 16×16×16 (video).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderConfig, DecodingConfig, EncoderConfig, MediaConfig
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae as kl
from mmldm_scale.models.autoencoder.decoder import MODALITIES, Condition, SignalDecoder
from mmldm_scale.models.autoencoder.decoding import denoise
from mmldm_scale.models.autoencoder.encoders import AudioEncoder, VideoEncoder
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.models.autoencoder.semantic import ClassificationHead, ContrastiveHead, Projector, Semantics

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Posteriors:
    """What the encoders say about clips: ``audio`` (B, C, H_a, W_a) and ``video`` (B, C, H_v, W_v)."""

    audio: Gaussian
    video: Gaussian


class Autoencoder(nn.Module):
    """Frozen KL-VAE, audio and video encoder, projectors into the semantic space with their heads, signal decoder.

    Args:
        classes: names of the classes that clips may have; none: no classification head, and every class is unknown.

    Raises:
        UserError: the pictures' size is not divisible as the KL-VAE and the encoders need it, or a key frame is none
            of a clip's.
    """

    def __init__(
        self, config: AutoencoderConfig, media: MediaConfig, kl_vae: AutoencoderKL, classes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.config, self.media, self.classes = config, media, tuple(classes)
        self.kl_vae = kl_vae.eval().requires_grad_(False)
        channels, size = kl_vae.config.latent_channels, _divide(media.size, kl.reduction(kl_vae), "the KL-VAE")
        self.noise_shape: Shape = (channels, size, size)
        self.audio_shape = _latent_shape(config.audio_encoder, config.latent_channels, size, "model.audio_encoder")
        self.video_shape = _latent_shape(config.video_encoder, config.latent_channels, size, "model.video_encoder")
        _check_key_frames(config.video_encoder.key_frames, media.frames)
        self.audio_encoder = AudioEncoder(config, channels)
        self.video_encoder = VideoEncoder(config, self.noise_shape, media.frames)
        if config.semantics:
            self.audio_projector = Projector(self.audio_shape, config.semantic_width)
            self.video_projector = Projector(self.video_shape, config.semantic_width)
            if config.contrastive_width:
                self.contrastive_head = ContrastiveHead(config.semantic_width, config.contrastive_width)
            if self.classes:
                self.classification_head = ClassificationHead(config.semantic_width, len(self.classes))
        self.decoder = SignalDecoder(
            config, self.audio_shape, self.video_shape, self.noise_shape, media.frames, len(self.classes)
        )
        if config.activation_checkpointing:
            self.kl_vae.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> "Autoencoder":
        """Set training mode everywhere but in the KL-VAE, which stays frozen."""
        super().train(mode)
        self.kl_vae.eval()
        return self

    def set_kl_vae_aside(self) -> None:
        """Make the KL-VAE a plain attribute: no part of the parameters, of the state, and of what ``to`` casts."""
        self.__dict__["kl_vae"] = self._modules.pop("kl_vae")

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating type."""
        return self.audio_encoder.stem.weight.dtype

    @property
    def temperature(self) -> Tensor:
        """τ of Eq. 1: a positive scalar of at most 100, float32, learned. There is none without semantics."""
        return self.contrastive_head.temperature()

    @torch.no_grad()
    def picture_latents(self, pictures: Tensor) -> Tensor:
        """Return the scaled KL-VAE latents (N, c, s, s) float32 of ``pictures`` (N, 3, S, S) in [-1, 1]."""
        return kl.encode(self.kl_vae, pictures)

    def picture(self, latents: Tensor) -> Tensor:
        """Return the pictures (N, 3, S, S) float32, about in [-1, 1], of scaled KL-VAE latents (N, c, s, s).

        Gradients reach ``latents``, everywhere: nothing is clamped.
        """
        return kl.render(self.kl_vae, latents)

    def posteriors(self, frame_latents: Tensor, audio_latent: Tensor) -> Posteriors:
        """Return the posteriors of KL-VAE latents of the frames (B, F, c, s, s) and the audio image (B, c, s, s)."""
        audio = Gaussian.from_moments(self.audio_encoder(audio_latent.to(self.dtype)))
        video = Gaussian.from_moments(self.video_encoder(frame_latents.to(self.dtype)))
        return Posteriors(audio, video)

    def semantics(self, audio_latent: Tensor, video_latent: Tensor) -> Semantics | None:
        """Return what latents (B, C, H_a, W_a) and (B, C, H_v, W_v) are about; None if the model has no semantics."""
        if not self.config.semantics:
            return None
        if self.config.detach_projectors:
            audio_latent, video_latent = audio_latent.detach(), video_latent.detach()
        return Semantics(self.audio_projector(audio_latent), self.video_projector(video_latent))

    def classify(self, semantics: Semantics) -> Tensor:
        """Return the logits (B, n) float32 of the model's n ``classes``, of which there must be some."""
        return self.classification_head(semantics)

    def contrast(self, semantics: Semantics) -> tuple[Tensor, Tensor]:
        """Return f_co(s_a) and f_co(s_v) of Eq. 1: each (B, W) float32, vectors of length 1."""
        return self.contrastive_head(semantics.audio), self.contrastive_head(semantics.video)

    def conditions(
        self,
        audio_latent: Tensor,
        video_latent: Tensor,
        frames: Tensor,
        semantics: Semantics | None,
        labels: Tensor | None = None,
        dropped_audio: Tensor | None = None,
        dropped_video: Tensor | None = None,
    ) -> tuple[Condition, Condition]:
        """Return what the decoder is told about the audio images (N = B) and about ``frames`` (N = B·K).

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            frames: (B, K) integers.
            semantics: of these latents; each modality is told the other's.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: all unknown.
            dropped_audio: (B,) bool, which audio images are drawn without semantics and class (for guidance).
            dropped_video: (B, K) bool, likewise of the frames.
        """
        told_audio, told_video = (semantics.video, semantics.audio) if semantics else (None, None)
        single = torch.zeros_like(frames[:, :1])
        audio = self.decoder.condition("audio", audio_latent, single, told_audio, labels, dropped_audio)
        video = self.decoder.condition("video", video_latent, frames, told_video, labels, dropped_video)
        return audio, video

    @torch.no_grad()
    def encode(self, frames: Tensor, audio_image: Tensor) -> Posteriors:
        """Return the posteriors of ``frames`` (B, F, 3, S, S) and ``audio_image`` (B, 3, S, S), both in [-1, 1]."""
        latents = self.picture_latents(torch.cat([frames, audio_image[:, None]], dim=1).flatten(0, 1))
        latents = latents.unflatten(0, (len(frames), -1))  # (B, F + 1, c, s, s)
        return self.posteriors(latents[:, :-1], latents[:, -1])

    @torch.no_grad()
    def decode(
        self,
        audio_latent: Tensor,
        video_latent: Tensor,
        audio_noise: Tensor,
        video_noise: Tensor,
        decoding: DecodingConfig,
        labels: Tensor | None = None,
        semantics: Semantics | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode perceptual latents, all pictures of a batch of clips together.

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            audio_noise: (B, c, s, s) standard normal.
            video_noise: (B, F, c, s, s) standard normal.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: those that the classification of the
                semantics says, where the model has classes.
            semantics: what the clips are told to be about; None: what the latents are about.

        Returns:
            frames (B, F, 3, S, S) and audio image (B, 3, S, S), both float32 in [-1, 1].
        """
        batch, frames = video_noise.shape[:2]
        audio_latent, video_latent = audio_latent.to(self.dtype), video_latent.to(self.dtype)
        semantics = semantics or self.semantics(audio_latent, video_latent)
        if labels is None and semantics and self.classes:
            labels = self.classify(semantics).argmax(dim=1)
        index = torch.arange(frames, device=video_latent.device).expand(batch, -1)  # (B, F)
        conditions = self.conditions(audio_latent, video_latent, index, semantics, labels)
        latents = self._denoise([audio_noise, video_noise.flatten(0, 1)], conditions, decoding)
        parts = latents.split(decoding.pictures or len(latents))
        pictures = torch.cat([kl.decode(self.kl_vae, part) for part in parts])
        return pictures[batch:].unflatten(0, (batch, frames)), pictures[:batch]

    def _denoise(
        self, noise: list[Tensor], conditions: tuple[Condition, Condition], decoding: DecodingConfig
    ) -> Tensor:
        """Return the KL-VAE latents, audio images first, of both modalities' ``noise``, each (N, c, s, s)."""
        scales = (decoding.audio_guidance, decoding.video_guidance)
        guidance = [part.new_full((len(part),), scale) for part, scale in zip(noise, scales, strict=True)]
        nulls = None
        if self.config.semantics and max(scales) > 1:
            nulls = [self.decoder.null(name, part) for name, part in zip(MODALITIES, conditions, strict=True)]
        if self.config.shared_decoder:  # both go through the U-Net together
            noise, guidance = [torch.cat(noise)], [torch.cat(guidance)]
            conditions, nulls = [Condition.join(conditions)], nulls and [Condition.join(nulls)]
        parts = zip(noise, conditions, nulls or [None] * len(noise), guidance, strict=True)
        return torch.cat(
            [denoise(self.decoder, start, told, null, decoding, scale) for start, told, null, scale in parts]
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write everything, the KL-VAE included, as a weights folder of kind "autoencoder"."""
        save(folder, self.config, self.media, self.kl_vae, self.classes, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "Autoencoder":
        """Load the autoencoder of a run, checkpoint or weights folder in evaluation mode.

        The KL-VAE stays in float32 whatever ``dtype`` is: its activations overflow float16.

        Raises:
            UserError: there is none at ``path``, it is of another kind, or it is damaged.
        """
        folder = pretrained.find(path, "autoencoder")
        stored = pretrained.read_config(folder, "autoencoder")
        try:
            config = _restore(AutoencoderConfig, stored["model"])
            media = _restore(MediaConfig, stored["media"])
            model = cls(config, media, AutoencoderKL.from_config(stored["kl_vae"]), stored["classes"])
        except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
            raise UserError(f"{folder / pretrained.CONFIG}: describes no autoencoder: {_line(error)}") from None
        pretrained.load_into(model, folder)
        model.to(device, dtype).kl_vae.float()
        return model.eval()


def save(
    folder: Path,
    config: AutoencoderConfig,
    media: MediaConfig,
    kl_vae: AutoencoderKL,
    classes: Sequence[str],
    state: dict[str, Tensor],
) -> None:
    """Write ``state`` (of a whole :class:`Autoencoder`) as the weights folder that ``from_pretrained`` reads."""
    description = {
        "model": dataclasses.asdict(config),
        "media": dataclasses.asdict(media),
        "kl_vae": {key: value for key, value in kl_vae.config.items() if not key.startswith("_")},
        "classes": list(classes),
    }
    pretrained.save(folder, "autoencoder", description, state)


def _restore(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _latent_shape(encoder: EncoderConfig, channels: int, size: int, key: str) -> Shape:
    side = _divide(size, 2 ** (len(encoder.multipliers) - 1), key)
    return channels, side, side


def _check_key_frames(key_frames: list[int], frames: int) -> None:
    if not all(0 <= frame < frames for frame in key_frames):
        raise UserError(f"model.video_encoder.key_frames: a clip's frames are 0 to {frames - 1}, not {key_frames}")


def _divide(size: int, factor: int, key: str) -> int:
    if size % factor:
        raise UserError(f"media.size: {key} reduces {size} by {factor}, which leaves a remainder")
    return size // factor
