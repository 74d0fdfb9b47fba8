"""The projectors from a perceptual latent into the semantic space that audio and video share (section 3.1)."""

import torch
from torch import Tensor, nn

from mmldm_scale.models.autoencoder.blocks import residual_block


class Projector(nn.Module):
    """Perceptual latent (B, C, h, w) → semantic tokens (B, h·w, ``width``), in raster order."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, rows = shape
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.block = residual_block(width, width)
        self.position = nn.Parameter(0.02 * torch.randn(height * rows, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the semantic tokens (B, h·w, width) of ``latent`` (B, C, h, w)."""
        features = self.block(self.stem(latent), None)  # (B, D, h, w)
        return self.norm(features.flatten(2).transpose(1, 2) + self.position)
