"""Multi-scale features of a perceptual latent, specific to a frame, for the signal decoder's U-Net (section 3.1).

The video latent holds a whole clip. Its first convolution is the mirror image of the encoder's merge: it spreads the
latent into one feature map a frame, of which the asked frames are kept; residual blocks modulated by the frame's
embedding refine it, and it is carried to every resolution of the U-Net. An audio latent is a clip of one "frame".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.config import AutoencoderConfig
from mmldm_scale.models.autoencoder.blocks import residual_block, zeroed
from mmldm_scale.models.recompute import Recomputation, recompute


class FeaturePyramid(nn.Module):
    """Perceptual latent → what is added to each output of the U-Net's encoder.

    Args:
        config: of the whole autoencoder; it gives the U-Net's geometry. Its encoder has ``decoder.blocks`` outputs a
            level, and one more for its stem and for each halving.
        shape: (C, h, w) of the latent.
        size: s, height and width of the U-Net's input; a power of two times h.
        frames: F, how many frames the latent holds.
    """

    def __init__(self, config: AutoencoderConfig, shape: tuple[int, int, int], size: int, frames: int) -> None:
        super().__init__()
        unet = config.decoder
        widths, embedding = [unet.width * multiplier for multiplier in unet.multipliers], unet.width
        self.recomputation: Recomputation = "full" if config.activation_checkpointing else "none"
        self.start = round(math.log2(size / shape[1]))  # the level whose resolution is the latent's
        bottom = widths[min(self.start, len(widths) - 1)]
        self.spread = nn.Conv2d(shape[0], frames * bottom, 3, padding=1)
        self.frames = frames
        self.entry = residual_block(bottom, bottom, embedding)
        self.finer = nn.ModuleList()  # from level start - 1 up to level 0
        width = bottom
        for level in range(self.start - 1, -1, -1):
            target = widths[min(level, len(widths) - 1)]
            self.finer.append(_Step(width, target, embedding, scale=2.0))
            width = target
        self.coarser = nn.ModuleList(  # from level start + 1 down to the last
            _Step(widths[level - 1], widths[level], embedding, scale=0.5)
            for level in range(self.start + 1, len(widths))
        )
        self.levels = output_levels(len(widths), unet.blocks)
        channels = output_channels(widths, unet.blocks)
        self.outputs = nn.ModuleList(
            zeroed(nn.Conv2d(widths[level], width, 1)) for level, width in zip(self.levels, channels, strict=True)
        )

    def forward(self, latent: Tensor, frames: Tensor, embedding: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the additions (B·K, D, H, W) to the outputs of the U-Net's encoder, and last to its middle; then the
        finest features (B·K, D_0, s, s) themselves.

        Args:
            latent: (B, C, h, w).
            frames: (B, K) integers, the frames asked of each clip.
            embedding: (B·K, E), the embeddings of those frames.
        """
        spread = self.spread(latent).unflatten(1, (self.frames, -1))  # (B, F, D, h, w)
        clips = torch.arange(len(frames), device=frames.device)[:, None]
        chosen = spread[clips, frames].flatten(0, 1)  # (B·K, D, h, w)
        features = {self.start: recompute(self.entry, self.recomputation, chosen, embedding)}
        for level, step in zip(range(self.start - 1, -1, -1), self.finer, strict=True):
            features[level] = recompute(step, self.recomputation, features[level + 1], embedding)
        for level, step in enumerate(self.coarser, start=self.start + 1):
            features[level] = recompute(step, self.recomputation, features[level - 1], embedding)
        additions = [output(features[level]) for level, output in zip(self.levels, self.outputs, strict=True)]
        return additions, features[0]


class _Step(nn.Module):
    """From one resolution to the next, twice or half as fine."""

    def __init__(self, inputs: int, outputs: int, embedding: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2 if scale < 1 else 1)
        self.block = residual_block(outputs, outputs, embedding)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        if self.scale > 1:
            features = F.interpolate(features, scale_factor=self.scale, mode="nearest")
        return self.block(self.convolution(features), embedding)


def output_levels(levels: int, blocks: int) -> list[int]:
    """Return the resolution (as a level, 0 the finest) of each output of the U-Net's encoder, then of its middle."""
    found = [0]
    for level in range(levels):
        found += [level] * blocks + ([level + 1] if level < levels - 1 else [])
    return [*found, levels - 1]


def output_channels(widths: list[int], blocks: int) -> list[int]:
    """Return the channels of each output of the U-Net's encoder, then of its middle."""
    channels = [widths[0]]
    for level, width in enumerate(widths):
        channels += [width] * (blocks + (level < len(widths) - 1))
    return [*channels, widths[-1]]
