"""The modality-specific encoders: KL-VAE latents → the moments of the perceptual latents (section 3.1, Figure 3a).

Both are stacks of residual blocks with a strided convolution between levels and attention at the last level; they share
no parameters. The video encoder processes single frames, mixes them along time at every level, and finally merges all
frames of a clip into one feature map. With ``key_frames`` it reads only those frames and one learned content frame,
which can collect what they have in common (public code).

With ``shortcut`` the mean is the encoder's output plus a path without parameters, which folds space into channels and
averages (after DC-AE, arXiv 2410.10733), so that latents carry the clip from the first step (ours).
"""

import torch
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderConfig, EncoderConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.models.autoencoder.blocks import SelfAttention, fold, norm_groups, residual_block, zeroed
from mmldm_scale.models.recompute import Recomputation, recompute

INITIAL_LOGVAR = -6.0  # initial log-variance of the posteriors, small so that noise does not hide the mean at first


class AudioEncoder(nn.Module):
    """Latent of an audio image (B, c, s, s) → moments (B, 2·C, s/f_a, s/f_a), f_a = 2 ** (levels - 1).

    Args:
        config: configuration of the whole autoencoder.
        inputs: c, channels of the KL-VAE's latents.
    """

    def __init__(self, config: AutoencoderConfig, inputs: int) -> None:
        super().__init__()
        encoder = config.audio_encoder
        widths = [encoder.width * multiplier for multiplier in encoder.multipliers]
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.levels = _levels(widths, encoder.blocks)
        self.attention = SelfAttention(widths[-1], encoder.heads)
        self.head = _head(widths[-1], config.latent_channels)
        self.shortcut, self.factor = config.shortcut, 2 ** (len(widths) - 1)
        self.recomputation: Recomputation = "full" if config.activation_checkpointing else "none"

    def forward(self, latent: Tensor) -> Tensor:
        """Return the moments (B, 2·C, s/f_a, s/f_a) of ``latent`` (B, c, s, s)."""
        hidden = self.stem(latent)
        for level in self.levels:
            hidden = recompute(level, self.recomputation, hidden)
        tokens = self.attention(hidden.flatten(2).transpose(1, 2))  # (B, D, h, w) -> (B, h·w, D)
        hidden = tokens.transpose(1, 2).unflatten(2, hidden.shape[2:])  # (B, D, h, w)
        moments = self.head(hidden)  # (B, 2·C, h, w)
        return _add_shortcut(moments, latent[:, None], self.factor) if self.shortcut else moments


class VideoEncoder(nn.Module):
    """Latents of ``frames`` frames (B, F, c, s, s) → moments (B, 2·C, s/f_v, s/f_v), f_v = 2 ** (levels - 1).

    Args:
        config: configuration of the whole autoencoder.
        noise_shape: (c, s, s) of a frame's latent.
        frames: F, number of frames of a clip. The encoder reads ``video_encoder.key_frames``, or all if empty.
    """

    def __init__(self, config: AutoencoderConfig, noise_shape: Shape, frames: int) -> None:
        super().__init__()
        encoder = config.video_encoder
        widths = [encoder.width * multiplier for multiplier in encoder.multipliers]
        self.key_frames = encoder.key_frames
        if self.key_frames:
            self.content_frame = nn.Parameter(0.02 * torch.randn(noise_shape))
            frames = len(self.key_frames) + 1
        self.stem = nn.Conv2d(noise_shape[0], widths[0], 3, padding=1)
        self.levels = _levels(widths, encoder.blocks)
        self.times = nn.ModuleList(TemporalConvolution(width) for width in widths)
        self.attention = TemporalAttention(frames, widths[-1], encoder.heads)
        self.merge = nn.Conv2d(frames * widths[-1], widths[-1], 3, padding=1)
        self.block = residual_block(widths[-1], widths[-1])
        self.head = _head(widths[-1], config.latent_channels)
        self.shortcut, self.factor = config.shortcut, 2 ** (len(widths) - 1)
        self.recomputation: Recomputation = "full" if config.activation_checkpointing else "none"

    def forward(self, latents: Tensor) -> Tensor:
        """Return the moments (B, 2·C, s/f_v, s/f_v) of ``latents`` (B, F, c, s, s)."""
        inputs = latents
        if self.key_frames:  # F is then the number of key frames, and one more with the content frame
            latents = latents[:, self.key_frames]
            inputs = torch.cat([self.content_frame.expand(len(latents), 1, -1, -1, -1), latents], dim=1)
        batch, frames = inputs.shape[:2]
        hidden = self.stem(inputs.flatten(0, 1))  # (B·F, D, s, s)
        for level, time in zip(self.levels, self.times, strict=True):
            hidden = recompute(level, self.recomputation, hidden)
            hidden = recompute(time, self.recomputation, hidden, frames)
        hidden = hidden.unflatten(0, (batch, frames))  # (B, F, D, h, w)
        hidden = recompute(self.attention, self.recomputation, hidden)
        hidden = self.merge(hidden.flatten(1, 2))  # (B, F·D, h, w) -> (B, D, h, w)
        moments = self.head(self.block(hidden, None))
        return _add_shortcut(moments, latents, self.factor) if self.shortcut else moments


class TemporalAttention(nn.Module):
    """Self-attention between the frames of a clip at each position, with a learned embedding of the frame's place."""

    def __init__(self, frames: int, width: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(frames, width))
        self.attention = SelfAttention(width, heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` (B, F, D, h, w) plus the attention of each frame over all frames."""
        batch, _, _, height, width = hidden.shape
        tokens = hidden.permute(0, 3, 4, 1, 2).flatten(0, 2) + self.position  # (B·h·w, F, D)
        tokens = self.attention(tokens).unflatten(0, (batch, height, width))  # (B, h, w, F, D)
        return tokens.permute(0, 3, 4, 1, 2)  # (B, F, D, h, w)


class TemporalConvolution(nn.Module):
    """Residual convolution over three consecutive frames at each position; zero-initialised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(width), width)
        self.convolution = zeroed(nn.Conv2d(width, width, (3, 1), padding=(1, 0)))

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """Return ``hidden`` plus its convolution along time, both (N, D, h, w) with N = B·F and F = ``frames``."""
        sequence = nn.functional.silu(self.norm(hidden)).flatten(2).unflatten(0, (-1, frames))  # (B, F, D, h·w)
        mixed = self.convolution(sequence.transpose(1, 2)).transpose(1, 2)  # (B, D, F, h·w) -> (B, F, D, h·w)
        return hidden + mixed.flatten(0, 1).view_as(hidden)  # (B·F, D, h, w)


class Level(nn.Module):
    """An optional strided convolution that halves height and width, then residual blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int, halve: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1) if halve else nn.Identity()
        self.blocks = nn.ModuleList(residual_block(inputs if i == 0 else outputs, outputs) for i in range(blocks))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, outputs, h, w), or (B, outputs, h/2, w/2) if it halves, from ``hidden`` (B, inputs, h, w)."""
        hidden = self.down(hidden)
        for block in self.blocks:
            hidden = block(hidden, None)
        return hidden


def _levels(widths: list[int], blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Level(widths[max(i - 1, 0)], width, blocks, halve=i > 0) for i, width in enumerate(widths))


def _head(width: int, latent_channels: int) -> nn.Conv2d:
    """Return the last layer. It follows no norm, which would remove brightness and loudness from the latents."""
    head = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)
    assert head.bias is not None  # always, with the default bias=True
    nn.init.constant_(head.bias[latent_channels:], INITIAL_LOGVAR)
    return head


def _add_shortcut(moments: Tensor, latents: Tensor, factor: int) -> Tensor:
    """Return ``moments`` (B, 2·C, h, w) with ``latents`` (B, F, c, s, s), folded by ``factor``, added to the mean."""
    mean, logvar = moments.chunk(2, dim=1)  # (B, C, h, w) each
    return torch.cat([mean + fold(latents, factor, mean.shape[1]), logvar], dim=1)


def latent_shape(encoder: EncoderConfig, channels: int, size: int, key: str) -> Shape:
    """Return (C, h, w) of the perceptual latents of ``encoder``, with C ``channels``, for KL-VAE latents of ``size``.

    ``key`` is the encoder's in the configuration, for the UserError if it does not divide ``size``.
    """
    side = divide(size, 2 ** (len(encoder.multipliers) - 1), key)
    return channels, side, side


def check_key_frames(key_frames: list[int], frames: int) -> None:
    """Raise UserError unless ``key_frames`` are indices of a clip's ``frames``."""
    if not all(0 <= frame < frames for frame in key_frames):
        raise UserError(
            f"model.video_encoder.key_frames: must lie in 0..{frames - 1}, a clip's frames, not {key_frames}"
        )


def divide(size: int, factor: int, reducer: str) -> int:
    """Return ``size`` / ``factor``; raise UserError, which names the ``reducer``, if that is no whole number."""
    if size % factor:
        raise UserError(f"media.size: {reducer} reduces {size} by {factor}; must be divisible")
    return size // factor
