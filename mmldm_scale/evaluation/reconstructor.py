"""Reconstructs clips with a trained autoencoder, as frames, audio images and waveforms.

The latents are the means of the posteriors. A clip's initial noise depends on the seed and on the clip's index in its
set alone, so a reconstruction does not depend on the other clips of its batch.
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
class ClipSignals:
    """The signals of B clips, original or reconstructed."""

    frames: Tensor  # (B, F, 3, S, S) in [-1, 1]
    audio_image: Tensor  # (B, 3, S, S) in [-1, 1]
    waveform: Tensor  # (B, N) in [-1, 1]


class Reconstructor:
    """A trained autoencoder with a vocoder."""

    def __init__(self, model: Autoencoder, settings: Reconstructing, device: torch.device) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.audio_image = AudioImage(model.media)
        self.vocoder = load_vocoder(settings.vocoder, model.media.audio)

    def originals(self, clips: Sequence[Clip]) -> ClipSignals:
        """Return the signals of ``clips`` themselves, on the device."""
        waveform = torch.stack([torch.from_numpy(clip.waveform) for clip in clips]).to(self.device)
        return ClipSignals(*signals(clips, self.audio_image, self.device), waveform)

    @torch.no_grad()
    def ceiling(self, originals: ClipSignals) -> ClipSignals:
        """Return ``originals`` through the KL-VAE and the vocoder alone, as with an autoencoder without loss."""
        vae, shape = self.model.kl_vae, originals.frames.shape[:2]  # (B, F)
        pictures = torch.cat([originals.audio_image, originals.frames.flatten(0, 1)])  # (B + B·F, 3, S, S)
        parts = pictures.split(self.settings.decoding.pictures or len(pictures))
        decoded = torch.cat([kl_vae.decode(vae, kl_vae.encode(vae, part)) for part in parts])
        return self._add_waveform(decoded[shape[0] :].unflatten(0, shape), decoded[: shape[0]])

    @torch.no_grad()
    def reconstruct(
        self, originals: ClipSignals, indices: Sequence[int], semantics_of: ClipSignals | None = None
    ) -> ClipSignals:
        """Return ``originals`` encoded and decoded.

        Args:
            indices: B positions of the clips in their set, which key their noise.
            semantics_of: B other clips, whose semantics the decoder gets in place of the clips' own.
        """
        semantics = None if semantics_of is None else self.model.semantics(*self.latents(semantics_of))
        inputs = *self.latents(originals), *self.noise(indices)
        return self._add_waveform(*self.model.decode(*inputs, self.settings.decoding, semantics=semantics))

    def latents(self, originals: ClipSignals) -> tuple[Tensor, Tensor]:
        """Return the means of the posteriors: audio (B, C, H_a, W_a) and video (B, C, H_v, W_v)."""
        posteriors = self.model.encode(originals.frames, originals.audio_image)
        return posteriors.audio.mean, posteriors.video.mean

    def noise(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the initial noise of the clips at ``indices``: audio (B, c, s, s) and video (B, F, c, s, s)."""
        shape, seed = self.model.noise_shape, self.settings.seed
        audio = rng.standard_normal(seed, "reconstruct/audio", indices, shape)
        video = rng.standard_normal(seed, "reconstruct/video", indices, (self.model.media.frames, *shape))
        return torch.from_numpy(audio).to(self.device), torch.from_numpy(video).to(self.device)

    def _add_waveform(self, frames: Tensor, audio_image: Tensor) -> ClipSignals:
        """Return decoded clips with the waveform that the vocoder makes of ``audio_image``."""
        decibels = self.audio_image.to_decibels(audio_image)
        return ClipSignals(frames, audio_image, self.vocoder(decibels, self.model.media.audio_samples))
