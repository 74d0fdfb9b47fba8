"""The audio-video diffusion transformer (section 3.2): predicts the noise in an audio and a video latent together.

Or what else :mod:`mmldm_scale.diffusion.noise_process` names; to the network it is all one.

The latents become tokens, one a position (patch size 1), and go through full self-attention as one sequence::

    [context tokens] [EOS_a] [audio tokens] [EOS_v] [video tokens]

Time acts through adaLN-zero in every block. A clean latent given as a condition (section 3.3) is embedded by a
linear layer that starts at zero and added to its modality's tokens; the null condition is a latent of zeros.
``PRESETS`` holds the paper's sizes.

With ``config.continuation`` it also continues a clip (supplementary material, of which we know three things: a control
branch of half the depth, whose outputs start at zero, reads the previous clip and the noisy latents; the previous
latents join the context tokens). The rest is inferred, after ControlNet for transformers (PixArt-δ, arXiv 2401.05252):
the previous latents become tokens behind the context, the branch begins from the same sequence as the trunk, and each
of its blocks' outputs is added to that of the trunk's block of the same number.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from mmldm_scale.config import Backend, DiTConfig
from mmldm_scale.models.attention import attention, choose_backend
from mmldm_scale.models.recompute import Recomputation, recompute

PRESETS: dict[str, DiTConfig] = {
    "S": DiTConfig(depth=12, width=768, heads=12),
    "B": DiTConfig(depth=20, width=1024, heads=16),
    "L": DiTConfig(depth=36, width=1536, heads=24),
}
FREQUENCIES = 256  # width of the sinusoidal time embedding

Shape = tuple[int, int, int]  # of a latent: channels, height, width


class DiT(nn.Module):
    """Noise prediction ε(z_a^t, z_v^t, t; z_a, z_v) for latents of ``audio_shape`` and ``video_shape``, (C, H, W).

    Computes in the dtype of its parameters, whatever the dtype of its inputs.

    Args:
        classes: how many classes a context can be made of; 0: the context is null, or embeddings from elsewhere.
    """

    def __init__(self, config: DiTConfig, audio_shape: Shape, video_shape: Shape, classes: int = 0) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        width = config.width
        self.embed_audio = LatentEmbedding(audio_shape, width)
        self.embed_video = LatentEmbedding(video_shape, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        controls = config.depth // 2 if config.continuation else 0
        self.control = nn.ModuleList(ControlBlock(self._block(), width) for _ in range(controls))
        if config.continuation:
            self.embed_previous_audio = PreviousEmbedding(audio_shape, width)
            self.embed_previous_video = PreviousEmbedding(video_shape, width)
        self.final_audio = FinalLayer(audio_shape, width)
        self.final_video = FinalLayer(video_shape, width)
        if config.context_tokens:
            self.null_context = nn.Parameter(torch.empty(config.context_tokens, config.context_width))
            self.embed_context = nn.Linear(config.context_width, width)
        if classes:
            self.embed_class = nn.Embedding(classes, config.context_width)
        self._initialise()

    def _block(self) -> "Block":
        config = self.config
        block = Block(config.width, config.heads, config.mlp_ratio, config.activation_checkpointing)
        if config.compile:
            block.compile()  # all share one compiled graph
        return block

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        time: Tensor,
        audio_condition: Tensor | None = None,
        video_condition: Tensor | None = None,
        *,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_length: Tensor | None = None,
        previous_audio: Tensor | None = None,
        previous_video: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise in ``audio`` (B, C, Ha, Wa) and ``video`` (B, C, Hv, Wv) at timestep ``time`` (B,).

        Args:
            audio_condition: Clean audio latents (B, C, Ha, Wa), zeros for samples without; None: none has one.
            video_condition: Clean video latents (B, C, Hv, Wv), likewise.
            label: (B,) integer, each sample's class; -1, or None for all: the learned null context.
            context: (B, context_tokens, context_width), a context from elsewhere; None: the null context.
            context_length: (B,) integer, how many tokens of ``context`` are used; null tokens stand for the others.
                None: all are.
            previous_audio: (B, C + 1, Ha, Wa), the clean audio latents of the clip before and a channel of ones;
                zeros, channel and all, for samples without. None: none has one.
            previous_video: (B, C + 1, Hv, Wv), likewise.

        Returns:
            The predicted noise of audio and video, shaped like them.

        Raises:
            ValueError: it is given a context or a clip before, and is not made for such.
        """
        dtype = self.time[0].weight.dtype
        modulation = self.time(sincos(time, FREQUENCIES).to(dtype))[:, None]  # (B, 1, D)
        parts = [
            *self._context_tokens(len(audio), label, context, context_length),  # (B, context tokens, D), if any
            *self._previous_tokens(audio, video, previous_audio, previous_video),  # (B, Ha·Wa and Hv·Wv, D), if any
            self.embed_audio(audio, audio_condition),  # (B, 1 + Ha·Wa, D)
            self.embed_video(video, video_condition),  # (B, 1 + Hv·Wv, D)
        ]
        x = torch.cat(parts, dim=1)  # (B, N, D)
        backend = choose_backend(self.config.attention, x.device, dtype, self.config.width // self.config.heads)
        branch = x
        for block, control in itertools.zip_longest(self.blocks, self.control):
            x = block(x, modulation, backend)
            if control is not None:
                branch, correction = control(branch, modulation, backend)
                x = x + correction
        *_, audio_tokens, video_tokens = x.split([part.shape[1] for part in parts], dim=1)
        return self.final_audio(audio_tokens, modulation), self.final_video(video_tokens, modulation)

    def _context_tokens(
        self, batch: int, label: Tensor | None, context: Tensor | None, length: Tensor | None
    ) -> list[Tensor]:
        if (label is not None and not self.classes) or (context is not None and not self.config.context_tokens):
            size = f"{self.classes} classes and {self.config.context_tokens} context tokens"
            raise ValueError(f"a context for a DiT with {size}")
        if not self.config.context_tokens:
            return []
        tokens = self.null_context.expand(batch, -1, -1)  # (B, T, W)
        if label is not None:  # on all tokens alike, so that none is lost and no class is the null context
            known = (label >= 0).to(tokens.dtype)
            tokens = tokens + (known[:, None] * self.embed_class(label.clamp(min=0)))[:, None]
        if context is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            used = places < (len(places) if length is None else length[:, None])  # (T,) or (B, T)
            tokens = torch.where(used[..., None], context.to(tokens.dtype), tokens)
        return [self.embed_context(tokens)]

    def _previous_tokens(
        self, audio: Tensor, video: Tensor, previous_audio: Tensor | None, previous_video: Tensor | None
    ) -> list[Tensor]:
        if not self.config.continuation:
            if not (previous_audio is None and previous_video is None):
                raise ValueError("a clip before for a DiT that continues none: model.continuation is off")
            return []
        return [self.embed_previous_audio(audio, previous_audio), self.embed_previous_video(video, previous_video)]

    def _initialise(self) -> None:
        """Xavier for linear layers, N(0, 0.02²) for embeddings, zero where a path starts closed (adaLN-zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        embeddings = [self.time[0].weight, self.time[2].weight]
        closed = [block.modulation for block in self.blocks]
        for embed, final in ((self.embed_audio, self.final_audio), (self.embed_video, self.final_video)):
            embeddings += [embed.start, embed.modality]
            closed += [embed.condition, final.modulation, final.project]
        if self.config.context_tokens:
            embeddings.append(self.null_context)
        if self.classes:
            embeddings.append(self.embed_class.weight)
        closed += [layer for control in self.control for layer in (control.block.modulation, control.out)]
        for weight in embeddings:
            nn.init.normal_(weight, std=0.02)
        for linear in closed:
            nn.init.zeros_(linear.weight)


class LatentEmbedding(nn.Module):
    """One modality's way into the sequence: [EOS] and one token for each position of its latent, row by row.

    ``count`` is the number of these tokens.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.count = 1 + rows * columns
        self.latent = nn.Linear(channels, width)
        self.condition = nn.Linear(channels, width)
        self.start = nn.Parameter(torch.empty(width))  # [EOS]
        self.modality = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_grid(rows, columns, width), persistent=False)

    def forward(self, latent: Tensor, condition: Tensor | None) -> Tensor:
        """Return the tokens (B, count, D) of ``latent`` (B, C, H, W) and the clean ``condition`` of its shape."""
        if condition is None:
            condition = torch.zeros_like(latent)
        dtype = self.start.dtype  # of a buffer it need not be: ZeRO 3 leaves those in float32
        latent, condition = (x.to(dtype).flatten(2).mT for x in (latent, condition))  # (B, H·W, C)
        x = self.latent(latent) + self.condition(condition)  # (B, H·W, D)
        x = x + self.positions.to(dtype) + self.modality
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)


class PreviousEmbedding(nn.Module):
    """One modality of the clip before as tokens, one for each position of its latent, row by row."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.latent = nn.Linear(channels + 1, width)
        self.register_buffer("positions", sincos_grid(rows, columns, width), persistent=False)

    def forward(self, latent: Tensor, previous: Tensor | None) -> Tensor:
        """Return the tokens (B, H·W, D) of ``previous`` (B, C + 1, H, W); None: no sample of ``latent`` has one."""
        if previous is None:
            previous = latent.new_zeros(len(latent), latent.shape[1] + 1, *latent.shape[2:])
        dtype = self.latent.weight.dtype
        return self.latent(previous.to(dtype).flatten(2).mT) + self.positions.to(dtype)


class FinalLayer(nn.Module):
    """One modality's way out of the sequence, to the noise in its latent."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, self.rows, self.columns = shape
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W) of ``tokens`` (B, 1 + H·W, D), of which the first, [EOS], is dropped."""
        shift, scale = self.modulation(modulation).chunk(2, dim=-1)
        x = self.project(modulate(self.norm(tokens[:, 1:]), shift, scale))  # (B, H·W, C)
        return x.mT.unflatten(2, (self.rows, self.columns))


class Block(nn.Module):
    """A transformer block with adaLN-zero: time shifts and scales each path's input and gates its output."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, recomputation: Recomputation = "none") -> None:
        super().__init__()
        self.heads, self.recomputation = heads, recomputation
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)  # no parameters: serves both
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulation: Tensor, backend: Backend) -> Tensor:
        """Return ``x`` (B, N, D) a block further; ``modulation`` (B, 1, D) is the embedded time."""
        return recompute(self._advance, self.recomputation, x, modulation, backend)

    def _advance(self, x: Tensor, modulation: Tensor, backend: Backend) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulation).chunk(6, dim=-1)
        x = x + gate_a * self._attend(modulate(self.norm(x), shift_a, scale_a), backend)
        return x + gate_m * self.mlp(modulate(self.norm(x), shift_m, scale_m))

    def _attend(self, x: Tensor, backend: Backend) -> Tensor:
        # q, k, v: (B, H, N, D / H) each
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(attention(q, k, v, backend).transpose(1, 2).flatten(2))  # (B, N, D)


class ControlBlock(nn.Module):
    """A block of the control branch, with the linear layer, zero at first, through which it acts on the trunk."""

    def __init__(self, block: Block, width: int) -> None:
        super().__init__()
        self.block = block
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, modulation: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """Return the branch's ``x`` (B, N, D) a block further, and what is added to the trunk there, (B, N, D)."""
        x = self.block(x, modulation, backend)
        return x, self.out(x)


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
    """Return the 2-D position embedding (rows · columns, width): half the width for the row, half the column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(row.flatten(), width // 2), sincos(column.flatten(), width // 2)], dim=1)
