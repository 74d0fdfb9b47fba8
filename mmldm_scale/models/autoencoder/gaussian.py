"""Diagonal Gaussian posteriors of perceptual latents, which the encoders return."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.common.modalities import Modality, as_pair, by_modality

LOGVAR_RANGE = (-30.0, 20.0)  # of log-variances: exp(logvar) is finite in float32, exp(logvar / 2) in float16


@dataclass(frozen=True)
class Gaussian:
    """Independent N(``mean``, exp(``logvar``)) for each element; both are (B, C, H, W)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Gaussian":
        """Split an encoder's output (B, 2·C, H, W) into mean and clamped log-variance, each (B, C, H, W)."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + σ · ``noise`` (B, C, H, W); the caller draws ``noise`` (B, C, H, W), standard normal."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.dtype)

    def kl(self) -> Tensor:
        """Return KL(self ‖ N(0, 1)) in nats, summed over channels and positions: (B,) float32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=(1, 2, 3))


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
        """The means of audio and video, as ``Autoencoder.decode`` takes them."""
        return as_pair({name: posterior.mean for name, posterior in self.present.items()})
