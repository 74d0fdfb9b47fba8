"""The hierarchical multi-modal autoencoder (section 3.1): clips ⇄ one audio and one video perceptual latent.

``Autoencoder.from_pretrained("runs/autoencoder")`` loads a trained one; :meth:`Autoencoder.encode` gives the posteriors
that the latent shards keep, :meth:`Autoencoder.decode` turns latents back into frames and an audio image with the noise
the caller hands in. At 256² with f = 8 the latents are 16×8×8 (audio) and 16×16×16 (video).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from mmldm_scale.config import AutoencoderConfig, DiffusionConfig, EncoderConfig, MediaConfig
from mmldm_scale.diffusion.schedule import scheduler, timesteps
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae as kl
from mmldm_scale.models.autoencoder.decoder import Condition, SignalDecoder
from mmldm_scale.models.autoencoder.encoders import AudioEncoder, VideoEncoder
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.models.autoencoder.semantic import Projector

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Posteriors:
    """What the encoders say about clips: ``audio`` (B, C, H_a, W_a) and ``video`` (B, C, H_v, W_v)."""

    audio: Gaussian
    video: Gaussian


class Autoencoder(nn.Module):
    """Frozen KL-VAE, audio and video encoder, projectors into the semantic space, and the shared signal decoder.

    Raises:
        UserError: the pictures' size is not divisible as the KL-VAE and the encoders need it.
    """

    def __init__(self, config: AutoencoderConfig, media: MediaConfig, kl_vae: AutoencoderKL) -> None:
        super().__init__()
        self.config, self.media = config, media
        self.kl_vae = kl_vae.eval().requires_grad_(False)
        channels, size = kl_vae.config.latent_channels, _divide(media.size, kl.reduction(kl_vae), "the KL-VAE")
        self.noise_shape: Shape = (channels, size, size)
        self.audio_shape = _latent_shape(config.audio_encoder, config.latent_channels, size, "model.audio_encoder")
        self.video_shape = _latent_shape(config.video_encoder, config.latent_channels, size, "model.video_encoder")
        self.audio_encoder = AudioEncoder(config.audio_encoder, channels, config.latent_channels)
        self.video_encoder = VideoEncoder(config.video_encoder, channels, config.latent_channels, media.frames)
        self.audio_projector = Projector(self.audio_shape, config.semantic_width)
        self.video_projector = Projector(self.video_shape, config.semantic_width)
        self.decoder = SignalDecoder(
            config.decoder, self.audio_shape, self.video_shape, self.noise_shape, media.frames, config.semantic_width
        )

    def train(self, mode: bool = True) -> "Autoencoder":
        """Set training mode everywhere but in the KL-VAE, which stays frozen."""
        super().train(mode)
        self.kl_vae.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating type."""
        return self.audio_projector.position.dtype

    @torch.no_grad()
    def picture_latents(self, pictures: Tensor) -> Tensor:
        """Return the scaled KL-VAE latents (N, c, s, s) float32 of ``pictures`` (N, 3, S, S) in [-1, 1]."""
        return kl.encode(self.kl_vae, pictures)

    def posteriors(self, frame_latents: Tensor, audio_latent: Tensor) -> Posteriors:
        """Return the posteriors of KL-VAE latents of the frames (B, F, c, s, s) and the audio image (B, c, s, s)."""
        audio = Gaussian.from_moments(self.audio_encoder(audio_latent.to(self.dtype)))
        video = Gaussian.from_moments(self.video_encoder(frame_latents.to(self.dtype)))
        return Posteriors(audio, video)

    def conditions(self, audio_latent: Tensor, video_latent: Tensor, frames: Tensor) -> tuple[Condition, Condition]:
        """Return what the decoder is told about the audio image (N = B) and about ``frames`` (B, K) (N = B·K)."""
        audio_tokens, video_tokens = self.audio_projector(audio_latent), self.video_projector(video_latent)
        single = torch.zeros_like(frames[:, :1])
        audio = self.decoder.condition("audio", audio_latent, single, video_tokens)
        return audio, self.decoder.condition("video", video_latent, frames, audio_tokens)

    @torch.no_grad()
    def encode(self, frames: Tensor, audio_image: Tensor) -> Posteriors:
        """Return the posteriors of ``frames`` (B, F, 3, S, S) and ``audio_image`` (B, 3, S, S), both in [-1, 1]."""
        latents = self.picture_latents(torch.cat([frames, audio_image[:, None]], dim=1).flatten(0, 1))
        latents = latents.unflatten(0, (len(frames), -1))  # (B, F + 1, c, s, s)
        return self.posteriors(latents[:, :-1], latents[:, -1])

    @torch.no_grad()
    def decode(
        self, audio_latent: Tensor, video_latent: Tensor, audio_noise: Tensor, video_noise: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Decode perceptual latents by DDIM (η = 0), all frames of a batch of clips at once.

        Args:
            audio_latent: (B, C, H_a, W_a).
            video_latent: (B, C, H_v, W_v).
            audio_noise: (B, c, s, s) standard normal.
            video_noise: (B, F, c, s, s) standard normal.
            steps: DDIM steps; a divisor of 1000.

        Returns:
            frames (B, F, 3, S, S) and audio image (B, 3, S, S), both float32 in [-1, 1].
        """
        batch, frames = video_noise.shape[:2]
        index = torch.arange(frames, device=video_latent.device).expand(batch, -1)  # (B, F)
        parts = self.conditions(audio_latent.to(self.dtype), video_latent.to(self.dtype), index)
        noise = [audio_noise, video_noise.flatten(0, 1)]
        audio, video = (self._denoise(start, part, steps) for start, part in zip(noise, parts, strict=True))
        pictures = kl.decode(self.kl_vae, torch.cat([audio, video]))
        return pictures[batch:].unflatten(0, (batch, frames)), pictures[:batch]

    def _denoise(self, noise: Tensor, condition: Condition, steps: int) -> Tensor:
        """Run DDIM from ``noise`` (N, c, s, s) to KL-VAE latents of the same shape, float32."""
        schedule = scheduler(DiffusionConfig())
        sample = noise.float()
        for time in timesteps(schedule, steps).to(noise.device):
            epsilon = self.decoder(sample, time.expand(len(sample)), condition)
            sample = schedule.step(epsilon, time, sample, eta=0.0, return_dict=False)[0]
        return sample

    def save_pretrained(self, folder: Path) -> None:
        """Write everything, the KL-VAE included, as a weights folder of kind "autoencoder"."""
        save(folder, self.config, self.media, self.kl_vae, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Autoencoder":
        """Load the autoencoder of a run, checkpoint or weights folder, in float32 on the CPU, in evaluation mode.

        Raises:
            UserError: there is none at ``path``, it is of another kind, or it is damaged.
        """
        folder = pretrained.find(path, "autoencoder")
        stored = pretrained.read_config(folder, "autoencoder")
        try:
            config = _restore(AutoencoderConfig, stored["model"])
            media = _restore(MediaConfig, stored["media"])
            model = cls(config, media, AutoencoderKL.from_config(stored["kl_vae"]))
        except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
            raise UserError(f"{folder / pretrained.CONFIG}: describes no autoencoder: {_line(error)}") from None
        pretrained.load_into(model, folder)
        return model.eval()


def save(
    folder: Path, config: AutoencoderConfig, media: MediaConfig, kl_vae: AutoencoderKL, state: dict[str, Tensor]
) -> None:
    """Write ``state`` (of a whole :class:`Autoencoder`) as the weights folder that ``from_pretrained`` reads."""
    description = {
        "model": dataclasses.asdict(config),
        "media": dataclasses.asdict(media),
        "kl_vae": {key: value for key, value in kl_vae.config.items() if not key.startswith("_")},
    }
    pretrained.save(folder, "autoencoder", description, state)


def _restore(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _latent_shape(encoder: EncoderConfig, channels: int, size: int, key: str) -> Shape:
    side = _divide(size, 2 ** (len(encoder.multipliers) - 1), key)
    return channels, side, side


def _divide(size: int, factor: int, key: str) -> int:
    if size % factor:
        raise UserError(f"media.size: {key} reduces {size} by {factor}, which leaves a remainder")
    return size // factor
