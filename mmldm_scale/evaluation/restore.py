"""Clips through an autoencoder and back, as pictures, audio images and sound.

A restorer decodes each clip with noise of its own, keyed by (seed, the clip's index in its set): what becomes of a clip
does not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale import counter
from mmldm_scale.config import Reconstructing
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder, Posteriors
from mmldm_scale.training.clip_data import signals


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
        """Return what the latents (the posteriors' means) of ``originals`` are decoded to.

        Args:
            indices: of the clips in their set.
            semantics_of: B other clips, whose semantics the decoder is told in place of the clips' own.
        """
        model, seed = self.model, self.settings.seed
        audio, video = _means(model.encode(originals.frames, originals.audio_image))
        semantics = None
        if semantics_of is not None:
            semantics = model.semantics(*_means(model.encode(semantics_of.frames, semantics_of.audio_image)))
        shapes = {"audio": model.noise_shape, "video": (model.media.frames, *model.noise_shape)}
        noise = [
            torch.from_numpy(counter.standard_normal(seed, f"reconstruct/{name}", indices, shape)).to(self.device)
            for name, shape in shapes.items()
        ]
        return self._sounding(*model.decode(audio, video, *noise, self.settings.decoding, semantics=semantics))

    def _sounding(self, frames: Tensor, audio_image: Tensor) -> Rendition:
        decibels = self.audio_image.to_decibels(audio_image)
        return Rendition(frames, audio_image, self.vocoder(decibels, self.model.media.audio_samples))


def _means(posteriors: Posteriors) -> tuple[Tensor, Tensor]:
    return posteriors.audio.mean, posteriors.video.mean
