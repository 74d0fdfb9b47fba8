"""Small parts that the encoders, the projectors and the feature pyramid share."""

import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def norm_groups(channels: int) -> int:
    """Return how many groups a group norm over ``channels`` gets: at most 32, each of at least four channels."""
    fitting = [groups for groups in (2, 4, 8, 16, 32) if channels % groups == 0 and channels >= 4 * groups]
    return max(fitting, default=1)


def residual_block(inputs: int, outputs: int, embedding: int | None = None) -> ResnetBlock2D:
    """Return a residual block ``inputs`` → ``outputs`` channels; an ``embedding`` scales and shifts it (FiLM)."""
    return ResnetBlock2D(
        in_channels=inputs,
        out_channels=outputs,
        temb_channels=embedding,
        groups=norm_groups(inputs),
        groups_out=norm_groups(outputs),
        time_embedding_norm="default" if embedding is None else "scale_shift",
    )


def fold(clips: Tensor, factor: int, channels: int) -> Tensor:
    """Fold clips (B, F, c, s, s) into (B, ``channels``, s/factor, s/factor), with nothing to learn.

    Frames and space become channels, of which neighbours (in space first, then in time) are averaged until ``channels``
    are left: 16 frames of 4 channels folded by 2 into 16 channels give the means of four stretches of time.
    """
    parts = F.pixel_unshuffle(clips, factor).unflatten(2, (clips.shape[2], -1))  # (B, F, c, f², h, w)
    tokens = parts.permute(0, 4, 5, 2, 1, 3).flatten(3)  # (B, h, w, c·F·f²)
    return F.adaptive_avg_pool1d(tokens.flatten(1, 2), channels).unflatten(1, tokens.shape[1:3]).permute(0, 3, 1, 2)


def unfold(latent: Tensor, factor: int, channels: int, frames: int) -> Tensor:
    """Unfold (B, C, h, w) into clips (B, ``frames``, ``channels``, h·factor, w·factor): what is left of them."""
    tokens = latent.permute(0, 2, 3, 1)  # (B, h, w, C)
    wide = F.adaptive_avg_pool1d(tokens.flatten(1, 2), channels * frames * factor**2)  # (B, h·w, c·F·f²)
    parts = wide.unflatten(1, tokens.shape[1:3]).unflatten(3, (channels, frames, -1))  # (B, h, w, c, F, f²)
    return F.pixel_shuffle(parts.permute(0, 4, 3, 5, 1, 2).flatten(2, 3), factor)


def zeroed(layer: nn.Module) -> nn.Module:
    """Set every parameter of ``layer`` to zero and return it: what it feeds starts out untouched."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SelfAttention(nn.Module):
    """Residual self-attention over the tokens of (B, N, D); ``heads`` must divide ``width`` = D."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``tokens`` (B, N, D) with what each gathered from the others added."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, D/H)
        gathered = F.scaled_dot_product_attention(q, k, v)
        return tokens + self.out(gathered.transpose(1, 2).flatten(2))  # (B, N, D)
