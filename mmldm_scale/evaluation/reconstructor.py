"""Reconstructs clips with a trained autoencoder, as frames, audio images and waveforms.

The latents are the means of the posteriors. A clip's initial noise depends on the seed and on the clip's index in its
set alone, so a reconstruction does not depend on the other clips of its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.config import Reconstructing
from mmldm_scale.media.audio_image import AudioImage, frame_signals, waveforms
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder


@dataclass(frozen=True)
class ClipSignals:
    """The signals of B clips, original or reconstructed; None for those that the autoencoder does not have."""

    frames: Tensor | None = None  # (B, F, 3, S, S) in [-1, 1]
    audio_image: Tensor | None = None  # (B, 3, S, S) in [-1, 1]
    waveform: Tensor | None = None  # (B, N) in [-1, 1]

    @property
    def present(self) -> dict[str, Tensor]:
        """The signals by name, without the missing ones."""
        return {name: signal for name, signal in vars(self).items() if signal is not None}


class Reconstructor:
    """A trained autoencoder with a vocoder."""

    def __init__(self, model: Autoencoder, settings: Reconstructing, device: torch.device) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.audio_image = AudioImage(model.media)
        self.vocoder = load_vocoder(settings.vocoder, model.media.audio) if "audio" in model.modalities else None

    def originals(self, clips: Sequence[Clip]) -> ClipSignals:
        """Return the signals of ``clips`` themselves, on the device."""
        frames = frame_signals(clips, self.device) if "video" in self.model.modalities else None
        waveform = waveforms(clips, self.device) if "audio" in self.model.modalities else None
        return ClipSignals(frames, None if waveform is None else self.audio_image.encode(waveform), waveform)

    @torch.no_grad()
    def ceiling(self, originals: ClipSignals) -> ClipSignals:
        """Return ``originals`` through the KL-VAE and the vocoder alone, as with an autoencoder without loss."""
        vae, frames = self.model.kl_vae, originals.frames
        pictures = by_modality(originals.audio_image, None if frames is None else frames.flatten(0, 1))
        together = torch.cat(list(pictures.values()))  # (B + B·F, 3, S, S)
        parts = together.split(self.settings.decoding.pictures or len(together))
        decoded = torch.cat([kl_vae.decode(vae, kl_vae.encode(vae, part)) for part in parts])
        restored = dict(zip(pictures, decoded.split([len(part) for part in pictures.values()]), strict=True))
        audio_image, video = as_pair(restored)
        if video is not None and frames is not None:
            video = video.view_as(frames)  # (B·F, 3, S, S) -> (B, F, 3, S, S)
        return self._add_waveform(video, audio_image)

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

    def latents(self, originals: ClipSignals) -> tuple[Tensor | None, Tensor | None]:
        """Return the means of the posteriors: audio (B, C, H_a, W_a) and video (B, C, H_v, W_v)."""
        return self.model.encode(originals.frames, originals.audio_image).means

    def noise(self, indices: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Return the initial noise of the clips at ``indices``: audio (B, c, s, s) and video (B, F, c, s, s)."""
        shape, seed = self.model.noise_shape, self.settings.seed
        shapes: dict[Modality, tuple[int, ...]] = {"audio": shape, "video": (self.model.media.frames, *shape)}
        noise = {
            name: torch.from_numpy(rng.standard_normal(seed, f"reconstruct/{name}", indices, shapes[name]))
            for name in self.model.modalities
        }
        return as_pair({name: part.to(self.device) for name, part in noise.items()})

    def _add_waveform(self, frames: Tensor | None, audio_image: Tensor | None) -> ClipSignals:
        """Return decoded clips with the waveform that the vocoder makes of ``audio_image``, if there is one."""
        if audio_image is None or self.vocoder is None:
            return ClipSignals(frames)
        decibels = self.audio_image.to_decibels(audio_image)
        return ClipSignals(frames, audio_image, self.vocoder(decibels, self.model.media.audio_samples))
