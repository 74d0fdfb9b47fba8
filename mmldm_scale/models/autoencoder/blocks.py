"""Layers and reshapings that the encoders, the projectors, the feature pyramid and the discriminators share."""

from typing import TypeVar

import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def norm_groups(channels: int) -> int:
    """Return the number of groups of a group norm over ``channels``: at most 32, each of at least four channels."""
    divisors = [groups for groups in (2, 4, 8, 16, 32) if channels % groups == 0 and channels >= 4 * groups]
    return max(divisors, default=1)


def residual_block(inputs: int, outputs: int, embedding: int | None = None) -> ResnetBlock2D:
    """Return a residual block (B, ``inputs``, H, W) → (B, ``outputs``, H, W).

    Its second argument is a vector (B, ``embedding``) that scales and shifts the features (FiLM); None without one.
    """
    return ResnetBlock2D(
        in_channels=inputs,
        out_channels=outputs,
        temb_channels=embedding,  # type: ignore[arg-type]  # declared int, but None means that there is no embedding
        groups=norm_groups(inputs),
        groups_out=norm_groups(outputs),
        time_embedding_norm="default" if embedding is None else "scale_shift",
    )


def fold(clips: Tensor, factor: int, channels: int) -> Tensor:
    """Fold clips (B, F, c, s, s) into (B, ``channels``, s/factor, s/factor), without parameters.

    Frames and space become channels, and neighbouring channels (neighbours in space first, then in time) are averaged
    until ``channels`` are left: 16 frames of 4 channels folded by 2 into 16 channels give the means over four
    consecutive frames. Source: after the shortcut of DC-AE (arXiv 2410.10733).
    """
    parts = F.pixel_unshuffle(clips, factor).unflatten(2, (clips.shape[2], -1))  # (B, F, c, f², h, w)
    tokens = parts.permute(0, 4, 5, 2, 1, 3).flatten(3)  # (B, h, w, c·F·f²)
    pooled = F.adaptive_avg_pool1d(tokens.flatten(1, 2), channels)  # (B, h·w, channels)
    return pooled.unflatten(1, tokens.shape[1:3]).permute(0, 3, 1, 2)  # (B, channels, h, w)


def unfold(latent: Tensor, factor: int, channels: int, frames: int) -> Tensor:
    """Unfold (B, C, h, w) into clips (B, ``frames``, ``channels``, h·factor, w·factor): the inverse of :func:`fold`.

    What fold averaged is repeated.
    """
    tokens = latent.permute(0, 2, 3, 1)  # (B, h, w, C)
    wide = F.adaptive_avg_pool1d(tokens.flatten(1, 2), channels * frames * factor**2)  # (B, h·w, c·F·f²)
    parts = wide.unflatten(1, tokens.shape[1:3]).unflatten(3, (channels, frames, -1))  # (B, h, w, c, F, f²)
    folded = parts.permute(0, 4, 3, 5, 1, 2).flatten(2, 3)  # (B, F, c·f², h, w)
    return F.pixel_shuffle(folded, factor)  # (B, F, c, h·f, w·f)


def zeroed(layer: Layer) -> Layer:
    """Set every parameter of ``layer`` to zero and return it, so that at first it adds nothing to its target."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SelfAttention(nn.Module):
    """Residual self-attention over tokens (B, N, D); D = ``width`` must be a multiple of ``heads``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``tokens`` (B, N, D) plus the attention of each over all of them."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D/H) each
        attended = F.scaled_dot_product_attention(q, k, v)
        return tokens + self.out(attended.transpose(1, 2).flatten(2))  # (B, N, D)
