"""The discriminator of sounding videos: is ⟨audio image, frame i, frame j⟩, i < j, a real clip's (section 3.1, Eq. 2)?

``AudioVideoDiscriminator(config)(pictures)`` gives one logit a triple. To tell a decoded triple from a real one it has
to judge each picture, the order of the two frames and whether all three belong together, so each of its levels is a
spatio-temporal module: residual blocks within a picture, then a convolution along the sequence of the three, and at the
coarser levels full attention over all places of all three pictures.
"""

import torch
from torch import Tensor, nn

from mmldm_scale.config import DiscriminatorConfig
from mmldm_scale.models.autoencoder.blocks import SelfAttention, norm_groups
from mmldm_scale.models.autoencoder.encoders import Level, TemporalConvolution

PICTURES = 3  # audio image, first frame, second frame


class AudioVideoDiscriminator(nn.Module):
    """Triples of pictures (B, 3, 3, S, S) in [-1, 1] → logits of being real (B,).

    It is told which picture is which by an embedding. There are no batch statistics: a triple's logit is its own. Level
    k attends over 3·(S/2^k)² tokens, of which the cost is the square: 196,608 at full resolution of 256² pictures are
    out of reach, 3,072 at the fourth level of the default seven are cheap, and the convolutions before have by then
    gathered what is local.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.picture = nn.Parameter(0.02 * torch.randn(PICTURES, widths[0], 1, 1))
        first = len(widths) - config.attention  # of the levels that attend
        self.levels = nn.ModuleList(
            SpatioTemporal(
                widths[max(i - 1, 0)], width, config.blocks, halve=i > 0, heads=config.heads if i >= first else 0
            )
            for i, width in enumerate(widths)
        )
        self.norm = nn.GroupNorm(norm_groups(widths[-1]), widths[-1])
        self.head = nn.Linear(PICTURES * widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits (B,) float32 of ``pictures`` (B, 3, 3, S, S): audio image, first and second frame."""
        hidden = self.stem(pictures.flatten(0, 1).to(self.head.weight.dtype))  # (B·3, D, S, S)
        hidden = (hidden.unflatten(0, (-1, PICTURES)) + self.picture).flatten(0, 1)
        for level in self.levels:
            hidden = level(hidden)
        pooled = nn.functional.silu(self.norm(hidden)).mean(dim=(2, 3))  # (B·3, D)
        return self.head(pooled.unflatten(0, (-1, PICTURES)).flatten(1)).squeeze(1).float()


class SpatioTemporal(nn.Module):
    """An optional halving and residual blocks in each picture, mixing along the three, and attention over all places.

    ``heads`` = 0: without the attention.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, halve: bool, heads: int) -> None:
        super().__init__()
        self.space = Level(inputs, outputs, blocks, halve)
        self.time = TemporalConvolution(outputs)
        self.attention = SelfAttention(outputs, heads) if heads else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B·3, outputs, h, w) from ``hidden`` (B·3, inputs, h, w), or half as high and wide."""
        hidden = self.time(self.space(hidden), PICTURES)
        if self.attention is None:
            return hidden
        _, _, height, width = hidden.shape
        tokens = hidden.unflatten(0, (-1, PICTURES)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, 3·h·w, D)
        tokens = self.attention(tokens).unflatten(1, (PICTURES, height, width))
        return tokens.permute(0, 1, 4, 2, 3).flatten(0, 1)
