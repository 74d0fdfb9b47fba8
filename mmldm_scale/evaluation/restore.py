"""Clips through an autoencoder and back, as pictures, audio images and sound.

The latents are the means of the posteriors, and the noise to decode from is each clip's own, keyed by (seed, the clip's
index in its set): what becomes of a clip does not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.config import Reconstructing
from mmldm_scale.media.audio_image import AudioImage, signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder


@dataclass(frozen=True)
class Rendition:
    """B clips, original or not."""

    frames: Tensor  # (B, F, 3, S, S) in [-1, 1]
    audio_image: Tensor  # (B, 3, S, S) in [-1, 1]
    waveform: Tensor  # (B, N) in [-1, 1]


class Restorer:
    """A trained autoencoder with a vocoder."""

    def __init__(self, model: Autoencoder, settings: Reconstructing, device: torch.device) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.audio_image = AudioImage(model.media)
        self.vocoder = load_vocoder(settings.vocoder, model.media.audio)

    def original(self, clips: Sequence[Clip]) -> Rendition:
        """Return ``clips`` as they are."""
        waveform = torch.stack([torch.from_numpy(clip.waveform) for clip in clips]).to(self.device)
        return Rendition(*signals(clips, self.audio_image, self.device), waveform)

    @torch.no_grad()
    def ceiling(self, originals: Rendition) -> Rendition:
        """Return what KL-VAE and vocoder alone make of ``originals``: what a perfect autoencoder over them would."""
        vae, shape = self.model.kl_vae, originals.frames.shape[:2]  # (B, F)
        pictures = torch.cat([originals.audio_image, originals.frames.flatten(0, 1)])
        parts = pictures.split(self.settings.decoding.pictures or len(pictures))
        restored = torch.cat([kl_vae.decode(vae, kl_vae.encode(vae, part)) for part in parts])
        return self._sounding(restored[shape[0] :].unflatten(0, shape), restored[: shape[0]])

    @torch.no_grad()
    def restore(self, originals: Rendition, indices: Sequence[int], semantics_of: Rendition | None = None) -> Rendition:
        """Return what the latents of ``originals`` are decoded to.

        Args:
            indices: of the clips in their set.
            semantics_of: B other clips, whose semantics the decoder is told in place of the clips' own.
        """
        semantics = None if semantics_of is None else self.model.semantics(*self.latents(semantics_of))
        given = *self.latents(originals), *self.noise(indices)
        return self._sounding(*self.model.decode(*given, self.settings.decoding, semantics=semantics))

    def latents(self, originals: Rendition) -> tuple[Tensor, Tensor]:
        """Return the means of the posteriors: (B, C, H_a, W_a) and (B, C, H_v, W_v)."""
        posteriors = self.model.encode(originals.frames, originals.audio_image)
        return posteriors.audio.mean, posteriors.video.mean

    def noise(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what the clips at ``indices`` of their set are decoded from: (B, c, s, s) and (B, F, c, s, s)."""
        shape, seed = self.model.noise_shape, self.settings.seed
        audio = rng.standard_normal(seed, "reconstruct/audio", indices, shape)
        video = rng.standard_normal(seed, "reconstruct/video", indices, (self.model.media.frames, *shape))
        return torch.from_numpy(audio).to(self.device), torch.from_numpy(video).to(self.device)

    def _sounding(self, frames: Tensor, audio_image: Tensor) -> Rendition:
        decibels = self.audio_image.to_decibels(audio_image)
        return Rendition(frames, audio_image, self.vocoder(decibels, self.model.media.audio_samples))
