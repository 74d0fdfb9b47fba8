"""Multi-scale features of a perceptual latent for each frame, added inside the signal decoder's U-Net (section 3.1).

A video latent holds a whole clip. The first convolution mirrors the encoder's merge: it spreads the latent into one
feature map for each frame, of which the requested frames are selected. A residual block modulated by the frame's
embedding refines them, and further blocks carry them to every resolution of the U-Net. An audio latent is a clip of
one "frame".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.config import AutoencoderConfig
from mmldm_scale.models.autoencoder.blocks import residual_block, zeroed
from mmldm_scale.models.recompute import Recomputation, recompute


class FeaturePyramid(nn.Module):
    """Perceptual latent → the tensors added to the outputs of the U-Net's encoder and middle.

    Args:
        config: configuration of the whole autoencoder, of which ``decoder`` is the U-Net's geometry. The U-Net's
            encoder has ``decoder.blocks`` outputs for each level, one for its stem and one for each halving.
        shape: (C, h, w) of the latent.
        size: s, height and width of the U-Net's input; a power of two times h.
        frames: F, number of frames in the latent.
    """

    def __init__(self, config: AutoencoderConfig, shape: tuple[int, int, int], size: int, frames: int) -> None:
        super().__init__()
        unet = config.decoder
        widths, embedding = [unet.width * multiplier for multiplier in unet.multipliers], unet.width
        self.recomputation: Recomputation = "full" if config.activation_checkpointing else "none"
        self.start = round(math.log2(size / shape[1]))  # the U-Net level of the latent's resolution
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
        """Return the additions to the U-Net's outputs and the finest features.

        The additions are (B·K, D, H, W) each, one for each output of the U-Net's encoder and last one for its middle.
        The finest features are (B·K, D_0, s, s).

        Args:
            latent: (B, C, h, w).
            frames: (B, K) int64, the requested frames of each clip, 0 to F - 1.
            embedding: (B·K, E), the embeddings of these frames.
        """
        spread = self.spread(latent).unflatten(1, (self.frames, -1))  # (B, F, D, h, w)
        clips = torch.arange(len(frames), device=frames.device)[:, None]  # (B, 1)
        selected = spread[clips, frames].flatten(0, 1)  # (B·K, D, h, w)
        features = {self.start: recompute(self.entry, self.recomputation, selected, embedding)}
        for level, step in zip(range(self.start - 1, -1, -1), self.finer, strict=True):
            features[level] = recompute(step, self.recomputation, features[level + 1], embedding)
        for level, step in enumerate(self.coarser, start=self.start + 1):
            features[level] = recompute(step, self.recomputation, features[level - 1], embedding)
        additions = [output(features[level]) for level, output in zip(self.levels, self.outputs, strict=True)]
        return additions, features[0]


class _Step(nn.Module):
    """From one resolution to the next; ``scale`` is 2 (finer) or 0.5 (coarser)."""

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
    """Return the level (0 is the finest) of each output of the U-Net's encoder, then of its middle."""
    of_outputs = [0]  # the stem
    for level in range(levels):
        of_outputs += [level] * blocks + ([level + 1] if level < levels - 1 else [])
    return [*of_outputs, levels - 1]


def output_channels(widths: list[int], blocks: int) -> list[int]:
    """Return the number of channels of each output of the U-Net's encoder, then of its middle."""
    channels = [widths[0]]
    for level, width in enumerate(widths):
        channels += [width] * (blocks + (level < len(widths) - 1))
    return [*channels, widths[-1]]
