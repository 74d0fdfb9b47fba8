"""The layers of the diffusion transformer (:mod:`mmldm_scale.models.dit`): latents to tokens, blocks, tokens to noise.

Shapes: B clips, N tokens, D the width, H heads; latents are (B, C, rows, columns).
"""

import math

import torch
from torch import Tensor, nn

from mmldm_scale.config import Backend
from mmldm_scale.config.media import Shape
from mmldm_scale.models.attention import attention
from mmldm_scale.models.recompute import Recomputation, recompute

FREQUENCIES = 256  # channels of the sinusoidal time embedding


class TimeEmbedding(nn.Sequential):
    """The timestep, embedded: sinusoids, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def embed(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``time`` (B,) embedded, (B, 1, D), by layers of ``dtype``."""
        embedded: Tensor = self(sincos(time, FREQUENCIES).to(dtype))  # (B, FREQUENCIES) -> (B, D)
        return embedded[:, None]


class LatentEmbedding(nn.Module):
    """One modality's latent as tokens: [EOS], then one token for each position, row by row.

    ``count`` is the number of these tokens.
    """

    positions: Tensor  # (rows·columns, D), a buffer that is not saved

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.count = 1 + rows * columns
        self.latent = nn.Linear(channels, width)
        self.start = nn.Parameter(torch.empty(width))  # [EOS]
        self.modality = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_grid(rows, columns, width), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the tokens (B, count, D) of ``latent`` (B, C, rows, columns)."""
        return self._tokens(self.latent(by_position(latent, self.start.dtype)))

    def _tokens(self, x: Tensor) -> Tensor:
        """Return the tokens (B, count, D) of the embedded positions ``x`` (B, rows·columns, D)."""
        # The dtype is that of a parameter: an engine may leave the buffer in float32.
        x = x + self.positions.to(self.start.dtype) + self.modality
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)


class ConditionedEmbedding(LatentEmbedding):
    """A noisy latent as tokens, to which its clean latent is added where it is given as a condition."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(shape, width)
        self.condition = nn.Linear(shape[0], width)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the tokens (B, count, D) of ``latent`` and the clean ``condition``, both (B, C, rows, columns)."""
        dtype = self.start.dtype
        condition = or_zeros(condition, latent)
        return self._tokens(self.latent(by_position(latent, dtype)) + self.condition(by_position(condition, dtype)))


class ControlEmbedding(nn.Module):
    """What the control branch starts from: layers of its own for latents, context and time."""

    def __init__(self, audio_shape: Shape, video_shape: Shape, context_width: int, width: int) -> None:
        super().__init__()
        self.audio, self.video = (
            LatentEmbedding((2 * channels, rows, columns), width)
            for channels, rows, columns in (audio_shape, video_shape)
        )
        self.context = nn.Linear(context_width, width)
        self.time = TimeEmbedding(width)

    def forward(
        self,
        previous_audio: Tensor,
        previous_video: Tensor,
        audio: Tensor,
        video: Tensor,
        time: Tensor,
        context: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the branch's first tokens (B, N, D), in the trunk's order, and its embedded time (B, 1, D).

        Args:
            previous_audio: the previous clip's audio latents, shaped like ``audio``.
            previous_video: the previous clip's video latents, shaped like ``video``.
            audio: noisy audio latents (B, C, Ha, Wa).
            video: noisy video latents (B, C, Hv, Wv).
            time: (B,) timesteps.
            context: all context tokens (B, T, W), those of the previous latents included.
        """
        audio_tokens = self.audio(torch.cat([previous_audio, audio], dim=1))
        video_tokens = self.video(torch.cat([previous_video, video], dim=1))
        x = torch.cat([self.context(context), audio_tokens, video_tokens], dim=1)
        return x, self.time.embed(time, context.dtype)


class FinalLayer(nn.Module):
    """One modality's tokens to the noise in its latent."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, self.rows, self.columns = shape
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Return the prediction (B, C, rows, columns).

        Args:
            tokens: (B, 1 + rows·columns, D), of which the first, [EOS], is dropped.
            modulation: (B, 1, D), the embedded time.
        """
        shift, scale = self.modulation(modulation).chunk(2, dim=-1)  # (B, 1, D) each
        x = self.project(modulate(self.norm(tokens[:, 1:]), shift, scale))  # (B, rows·columns, C)
        return x.mT.unflatten(2, (self.rows, self.columns))  # (B, C, rows, columns)


class Block(nn.Module):
    """A transformer block with adaLN-zero: time shifts and scales each path's input and gates its output."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, recomputation: Recomputation = "none") -> None:
        super().__init__()
        self.heads, self.recomputation = heads, recomputation
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)  # no parameters: both paths use it
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulation: Tensor, backend: Backend) -> Tensor:
        """Return the block's output (B, N, D) for tokens ``x`` (B, N, D) and the embedded time (B, 1, D)."""
        return recompute(self._advance, self.recomputation, x, modulation, backend)

    def _advance(self, x: Tensor, modulation: Tensor, backend: Backend) -> Tensor:
        # (B, 1, D) each; a: attention, m: MLP
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulation).chunk(6, dim=-1)
        x = x + gate_a * self._attend(modulate(self.norm(x), shift_a, scale_a), backend)
        return x + gate_m * self.mlp(modulate(self.norm(x), shift_m, scale_m))

    def _attend(self, x: Tensor, backend: Backend) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D/H) each
        return self.project(attention(q, k, v, backend).transpose(1, 2).flatten(2))  # (B, N, D)


class ControlBlock(nn.Module):
    """A block of the control branch, with the linear layer, zero at first, whose output is added to the trunk."""

    def __init__(self, block: Block, width: int) -> None:
        super().__init__()
        self.block = block
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, modulation: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """Return the block's output and what is added to the trunk, (B, N, D) each, for ``x`` (B, N, D)."""
        x = self.block(x, modulation, backend)
        return x, self.out(x)


def or_zeros(latent: Tensor | None, like: Tensor) -> Tensor:
    """Return ``latent`` in the dtype of ``like``, or zeros if it is None; both are (B, C, H, W)."""
    return torch.zeros_like(like) if latent is None else latent.to(like.dtype)


def by_position(latent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``latent`` (B, C, rows, columns) by position, row by row: (B, rows·columns, C) in ``dtype``."""
    return latent.to(dtype).flatten(2).mT


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x · (1 + scale) + shift for x (B, N, D) and shift and scale (B, 1, D)."""
    return x * (1 + scale) + shift


def sincos(positions: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding (N, width), float32, of ``positions`` (N,): cosines, then sines.

    Wavelengths run geometrically from 2π to 2π · 10,000.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies  # (N, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_grid(rows: int, columns: int, width: int) -> Tensor:
    """Return the 2-D position embedding (rows·columns, width): half the channels embed the row, half the column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(row.flatten(), width // 2), sincos(column.flatten(), width // 2)], dim=1)
