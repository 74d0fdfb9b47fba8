"""The discriminator of sounding videos. It judges triples ⟨audio image, frame i, frame j⟩, i < j (section 3.1, Eq. 2).

A model of video alone has pairs ⟨frame i, frame j⟩ (ours); what is said of triples holds for them as well.

``AudioVideoDiscriminator(config)(pictures)`` returns one logit for each triple. To tell decoded triples from real ones
it has to judge each picture, the order of the two frames and whether all three belong together. Each level is therefore
a spatio-temporal module: residual blocks within a picture, a convolution along the three pictures, and at the coarser
levels full attention over all positions of all three.
"""

import torch
from torch import Tensor, nn

from mmldm_scale.config import DiscriminatorConfig
from mmldm_scale.models.autoencoder.blocks import SelfAttention, norm_groups
from mmldm_scale.models.autoencoder.encoders import Level, TemporalConvolution

PICTURES = 3  # of a triple: audio image, first frame, second frame
FRAMES = 2  # of them


class AudioVideoDiscriminator(nn.Module):
    """Triples of pictures (B, P, 3, S, S) in [-1, 1], P = ``pictures``, → logits of being real (B,).

    A learned embedding marks which picture of the triple is which. There are no batch statistics, so that a triple's
    logit does not depend on the batch. Level k attends over 3·(S/2^k)² tokens, at quadratic cost: 196,608 tokens at the
    full resolution of 256² pictures would be too many, 3,072 at the fourth of the default seven levels are cheap.
    """

    def __init__(self, config: DiscriminatorConfig, pictures: int = PICTURES) -> None:
        super().__init__()
        self.pictures = pictures
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.picture = nn.Parameter(0.02 * torch.randn(pictures, widths[0], 1, 1))
        first = len(widths) - config.attention  # the first level with attention
        self.levels = nn.ModuleList(
            SpatioTemporal(
                widths[max(i - 1, 0)],
                width,
                config.blocks,
                halve=i > 0,
                heads=config.heads if i >= first else 0,
                pictures=pictures,
            )
            for i, width in enumerate(widths)
        )
        self.norm = nn.GroupNorm(norm_groups(widths[-1]), widths[-1])
        self.head = nn.Linear(pictures * widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits (B,) float32 of ``pictures`` (B, P, 3, S, S): audio image, first and second frame."""
        hidden = self.stem(pictures.flatten(0, 1).to(self.head.weight.dtype))  # (B·P, D, S, S)
        hidden = (hidden.unflatten(0, (-1, self.pictures)) + self.picture).flatten(0, 1)  # through (B, P, D, S, S)
        for level in self.levels:
            hidden = level(hidden)
        pooled = nn.functional.silu(self.norm(hidden)).mean(dim=(2, 3))  # (B·P, D)
        return self.head(pooled.unflatten(0, (-1, self.pictures)).flatten(1)).squeeze(1).float()  # (B, P·D) -> (B,)


class SpatioTemporal(nn.Module):
    """A level within each picture, a convolution along all P of a triple, and attention over all their positions.

    Args:
        inputs, outputs: channels before and after.
        blocks: residual blocks.
        halve: whether height and width are halved first.
        heads: of the attention; 0: no attention.
        pictures: P.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, halve: bool, heads: int, pictures: int) -> None:
        super().__init__()
        self.pictures = pictures
        self.space = Level(inputs, outputs, blocks, halve)
        self.time = TemporalConvolution(outputs)
        self.attention = SelfAttention(outputs, heads) if heads else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return features of all pictures, whose clips lie one after the other in ``hidden``.

        The shape (B·P, D, h, w), D = inputs, becomes (B·P, outputs, h, w), or half as high and wide if it halves.
        """
        hidden = self.time(self.space(hidden), self.pictures)
        if self.attention is None:
            return hidden
        _, _, height, width = hidden.shape
        tokens = hidden.unflatten(0, (-1, self.pictures)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, P·h·w, D)
        tokens = self.attention(tokens).unflatten(1, (self.pictures, height, width))  # (B, P, h, w, D)
        return tokens.permute(0, 1, 4, 2, 3).flatten(0, 1)  # (B·P, D, h, w)
