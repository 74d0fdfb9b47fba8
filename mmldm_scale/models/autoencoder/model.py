"""The hierarchical multi-modal autoencoder (section 3.1): clips ⇄ one audio and one video perceptual latent.

``Autoencoder.from_pretrained("runs/autoencoder")`` loads a trained one. :meth:`Autoencoder.encode` returns the
posteriors that latent shards hold; :meth:`Autoencoder.decode` turns latents into frames and an audio image, from noise
that the caller draws. At 256² pixels and f = 8 the latents are 16×8×8 (audio) and 16×16×16 (video).

Shapes: B clips of F frames of S×S pixels; KL-VAE latents (c, s, s), s = S/f; perceptual latents (B, C, H_a, W_a) and
(B, C, H_v, W_v); N pictures.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from omegaconf import OmegaConf
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderConfig, DecodingConfig, EncoderConfig, MediaConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.decoder import MODALITIES, Condition, SignalDecoder
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

    audio: Gaussian
    video: Gaussian


class Autoencoder(nn.Module):
    """Frozen KL-VAE, audio and video encoder, projectors into the semantic space with their heads, signal decoder.

    Args:
        vae: the KL-VAE, which is frozen.
        classes: names of the clips' classes; empty: there is no classification head, and every class is unknown.

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
        self.noise_shape: Shape = (channels, size, size)  # of a picture's KL-VAE latent
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
        """Set the training mode of all parts but the KL-VAE, which stays in evaluation mode."""
        super().train(mode)
        self.kl_vae.eval()
        return self

    def set_kl_vae_aside(self) -> None:
        """Make the KL-VAE a plain attribute, outside the module's parameters and state and what ``to`` casts."""
        self.__dict__["kl_vae"] = self._modules.pop("kl_vae")

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the parameters; the KL-VAE may have another."""
        return self.audio_encoder.stem.weight.dtype

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

    def posteriors(self, frame_latents: Tensor, audio_latent: Tensor) -> Posteriors:
        """Return the posteriors for KL-VAE latents of frames (B, F, c, s, s) and audio images (B, c, s, s)."""
        audio = Gaussian.from_moments(self.audio_encoder(audio_latent.to(self.dtype)))
        video = Gaussian.from_moments(self.video_encoder(frame_latents.to(self.dtype)))
        return Posteriors(audio, video)

    def semantics(self, audio_latent: Tensor, video_latent: Tensor) -> Semantics | None:
        """Return the semantic tokens of latents (B, C, H_a, W_a) and (B, C, H_v, W_v).

        None if ``config.semantics`` is false.
        """
        if not self.config.semantics:
            return None
        if self.config.detach_projectors:
            audio_latent, video_latent = audio_latent.detach(), video_latent.detach()
        return Semantics(self.audio_projector(audio_latent), self.video_projector(video_latent))

    def classify(self, semantics: Semantics) -> Tensor:
        """Return the logits (B, n) float32 of the model's n ``classes``; n must be at least 1."""
        return self.classification_head(semantics)

    def contrast(self, semantics: Semantics) -> tuple[Tensor, Tensor]:
        """Return f_co(s_a) and f_co(s_v) of Eq. 1: vectors of length 1, each (B, config.contrastive_width) float32."""
        return self.contrastive_head(semantics.audio), self.contrastive_head(semantics.video)

    def conditions(
        self,
        audio_latent: Tensor,
        video_latent: Tensor,
        frames: Tensor,
        semantics: Semantics | None,
        labels: Tensor | None = None,
    ) -> tuple[Condition, Condition]:
        """Return the decoder's conditions for the audio images (N = B) and for ``frames`` (N = B·K).

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            frames: (B, K) int64, indices of the frames to decode, 0 to F - 1.
            semantics: of these latents; each modality is decoded with the other's.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: all unknown.
        """
        for_audio, for_video = (semantics.video, semantics.audio) if semantics else (None, None)
        index = torch.zeros_like(frames[:, :1])  # (B, 1): an audio image is its modality's only frame
        audio = self.decoder.condition("audio", audio_latent, index, for_audio, labels)
        video = self.decoder.condition("video", video_latent, frames, for_video, labels)
        return audio, video

    @torch.no_grad()
    def encode(self, frames: Tensor, audio_image: Tensor) -> Posteriors:
        """Return the posteriors of ``frames`` (B, F, 3, S, S) and ``audio_image`` (B, 3, S, S), both in [-1, 1]."""
        pictures = torch.cat([frames, audio_image[:, None]], dim=1)  # (B, F + 1, 3, S, S)
        latents = self.picture_latents(pictures.flatten(0, 1))  # (B·(F + 1), c, s, s)
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
        """Decode the perceptual latents of B clips.

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            audio_noise: (B, c, s, s) standard normal.
            video_noise: (B, F, c, s, s) standard normal.
            decoding: sampler, steps, guidance, and how many pictures the U-Net processes together.
            labels: (B,) int64 indices into ``classes``, -1 for unknown; None: the classes predicted from
                ``semantics``, if the model has classes.
            semantics: semantic tokens to decode with; None: those of the latents.

        Returns:
            Frames (B, F, 3, S, S) and audio images (B, 3, S, S), both float32 in [-1, 1].
        """
        batch, frames = video_noise.shape[:2]
        audio_latent, video_latent = audio_latent.to(self.dtype), video_latent.to(self.dtype)
        semantics = semantics or self.semantics(audio_latent, video_latent)
        if labels is None and semantics and self.classes:
            labels = self.classify(semantics).argmax(dim=1)
        index = torch.arange(frames, device=video_latent.device).expand(batch, -1)  # (B, F)
        conditions = self.conditions(audio_latent, video_latent, index, semantics, labels)
        latents = self._denoise([audio_noise, video_noise.flatten(0, 1)], conditions, decoding)  # (B + B·F, c, s, s)
        groups = latents.split(decoding.pictures or len(latents))
        pictures = torch.cat([kl_vae.decode(self.kl_vae, group) for group in groups])  # (B + B·F, 3, S, S)
        return pictures[batch:].unflatten(0, (batch, frames)), pictures[:batch]

    def _denoise(self, noise: list[Tensor], conditions: Sequence[Condition], decoding: DecodingConfig) -> Tensor:
        """Return the KL-VAE latents (N_a + N_v, c, s, s) of audio images and frames.

        Args:
            noise: of the audio images (N_a, c, s, s) and of the frames (N_v, c, s, s), standard normal.
            conditions: of the audio images and of the frames.
        """
        scales = (decoding.audio_guidance, decoding.video_guidance)
        guidance = [part.new_full((len(part),), scale) for part, scale in zip(noise, scales, strict=True)]
        nulls: list[Condition] = []
        if max(scales) > 1:
            nulls = [self.decoder.null(name, part) for name, part in zip(MODALITIES, conditions, strict=True)]
        if self.config.shared_decoder:  # the U-Net processes pictures of both modalities together
            noise, guidance = [torch.cat(noise)], [torch.cat(guidance)]
            conditions, nulls = [Condition.join(conditions)], [Condition.join(nulls)] if nulls else []
        null_or_none: Sequence[Condition | None] = nulls or [None] * len(noise)
        parts = zip(noise, conditions, null_or_none, guidance, strict=True)
        return torch.cat(
            [denoise(self.decoder, start, condition, null, decoding, scale) for start, condition, null, scale in parts]
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write the whole model, including the KL-VAE, as a weights folder of kind "autoencoder"."""
        save(folder, self.config, self.media, self.kl_vae, self.classes, self.state_dict())

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
        stored = pretrained.read_config(folder, "autoencoder")
        try:
            config = _restore(AutoencoderConfig, OLDER_MEANING, stored["model"])
            media = _restore(MediaConfig, stored["media"])
            vae = build_kl_vae(stored["kl_vae"], folder / pretrained.CONFIG)
            model = cls(config, media, vae, stored["classes"])
        except UserError:
            raise
        except Exception as error:  # layers of impossible sizes raise anything
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            raise UserError(f"{folder / pretrained.CONFIG}: does not describe an autoencoder: {reason}") from None
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
    """Write ``state``, that of a whole :class:`Autoencoder`, as the weights folder that ``from_pretrained`` reads."""
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
