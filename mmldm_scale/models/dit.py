"""The audio-video diffusion transformer (section 3.2), which predicts the noise in an audio and a video latent jointly.

With another ``diffusion.prediction`` the same network predicts v or the velocity instead
(:mod:`mmldm_scale.diffusion.noise_process`). Each position of a latent is one token (patch size 1), and full
self-attention runs over the sequence::

    [context tokens] [EOS_a] [audio tokens] [EOS_v] [video tokens]

Time modulates every block (adaLN-zero). A clean latent given as a condition (section 3.3) is embedded by a
zero-initialised linear layer and added to its modality's tokens; the null condition is a latent of zeros.
``PRESETS["L"]`` is the configuration of a preset; S, B and L are the paper's sizes.

With ``config.continuation`` the model also continues a clip. The supplementary material says three things about this: a
control branch has half the depth, its outputs start at zero, and it reads the previous clip and the noisy latents; the
previous latents join the context tokens. The rest is ours, after ControlNet for transformers (PixArt-δ, arXiv
2401.05252): the previous latents become tokens behind the context, the branch starts from the same sequence as the
trunk, and the output of its block i is added to the output of the trunk's block i.

Shapes: B clips, N tokens, D = ``config.width``, H heads; latents are (B, C, rows, columns).
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mmldm_scale.config import Backend, DiTConfig, presets
from mmldm_scale.config.media import Shape
from mmldm_scale.models.attention import attention, choose_backend
from mmldm_scale.models.recompute import Recomputation, recompute

FREQUENCIES = 256  # channels of the sinusoidal time embedding


class _Presets(Mapping[str, DiTConfig]):
    """The models of the preset files of ``mmldm train dit``, the smallest first; the files are read at first use."""

    @functools.cached_property
    def _models(self) -> dict[str, DiTConfig]:
        return presets.dit_models()

    def __getitem__(self, name: str) -> DiTConfig:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


PRESETS = _Presets()


class DiT(nn.Module):
    """Noise prediction ε(z_a^t, z_v^t, t; z_a, z_v) for latents of ``audio_shape`` and ``video_shape``, (C, H, W).

    Computes in the dtype of its parameters, whatever the dtype of its inputs.

    Args:
        classes: number of classes that a label can name; 0: no class embedding.
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
            block.compile()  # all blocks share one compiled graph
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
            time: (B,) timesteps from 0 (nearly clean) to T - 1 (nearly or wholly noise).
            audio_condition: Clean audio latents (B, C, Ha, Wa), zeros for samples without one; None: for all samples.
            video_condition: Clean video latents (B, C, Hv, Wv), likewise.
            label: (B,) int64, the class of each sample; -1, or None for all samples: the learned null context.
            context: (B, context_tokens, context_width), embeddings of a text; None: the null context.
            context_length: (B,) int64, how many tokens of ``context`` are used; learned null tokens replace the rest.
                None: all are used.
            previous_audio: (B, C + 1, Ha, Wa), the previous clip's clean audio latents and a channel of ones; all
                zeros for samples without a previous clip. None: no sample has one.
            previous_video: (B, C + 1, Hv, Wv), likewise.

        Returns:
            The predicted noise of audio (B, C, Ha, Wa) and video (B, C, Hv, Wv).

        Raises:
            ValueError: a label, context or previous clip is passed to a model built without them.
        """
        dtype = self.embed_audio.start.dtype
        modulation = self.time(sincos(time, FREQUENCIES).to(dtype))[:, None]  # (B, FREQUENCIES) -> (B, 1, D)
        parts = [
            *self._context_tokens(len(audio), label, context, context_length),  # (B, context_tokens, D), if any
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
        *_, audio_tokens, video_tokens = x.split([part.shape[1] for part in parts], dim=1)  # as in parts
        return self.final_audio(audio_tokens, modulation), self.final_video(video_tokens, modulation)

    def _context_tokens(
        self, batch: int, label: Tensor | None, context: Tensor | None, length: Tensor | None
    ) -> list[Tensor]:
        """Return the context's tokens (B, context_tokens, D) in a list, which is empty where there are none."""
        if label is not None and not self.classes:
            raise ValueError("DiT.forward: label needs a model with classes, this one has classes=0")
        if context is not None and not self.config.context_tokens:
            raise ValueError("DiT.forward: context needs model.context_tokens of at least 1, this model has 0")
        if not self.config.context_tokens:
            return []
        tokens = self.null_context.expand(batch, -1, -1)  # (B, T, W), T = context_tokens, W = context_width
        if label is not None:  # added to all tokens, so that class -1 is the null context and no token is replaced
            known = (label >= 0).to(tokens.dtype)  # (B,)
            tokens = tokens + (known[:, None] * self.embed_class(label.clamp(min=0)))[:, None]  # (B, 1, W) added
        if context is not None:
            index = torch.arange(tokens.shape[1], device=tokens.device)
            used = index < (len(index) if length is None else length[:, None])  # (T,) or (B, T)
            tokens = torch.where(used[..., None], context.to(tokens.dtype), tokens)
        return [self.embed_context(tokens)]  # (B, T, D)

    def _previous_tokens(
        self, audio: Tensor, video: Tensor, previous_audio: Tensor | None, previous_video: Tensor | None
    ) -> list[Tensor]:
        """Return the previous clip's tokens, (B, Ha·Wa, D) and (B, Hv·Wv, D), or an empty list."""
        if not self.config.continuation:
            if not (previous_audio is None and previous_video is None):
                raise ValueError("DiT.forward: a previous clip needs model.continuation=true, this model has false")
            return []
        return [self.embed_previous_audio(audio, previous_audio), self.embed_previous_video(video, previous_video)]

    def _initialise(self) -> None:
        """Initialise linear layers by Xavier, embeddings by N(0, 0.02²), and each path's last layer to zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        embeddings: list[Tensor] = [layer.weight for layer in self.time if isinstance(layer, nn.Linear)]
        zeroed: list[nn.Linear] = []
        for module in self.modules():
            if isinstance(module, Block):
                zeroed.append(module.modulation)
            elif isinstance(module, ControlBlock):
                zeroed.append(module.out)
            elif isinstance(module, LatentEmbedding):
                embeddings += [module.start, module.modality]
                zeroed.append(module.condition)
            elif isinstance(module, FinalLayer):
                zeroed += [module.modulation, module.project]
        if self.config.context_tokens:
            embeddings.append(self.null_context)
        if self.classes:
            embeddings.append(self.embed_class.weight)
        for weight in embeddings:
            nn.init.normal_(weight, std=0.02)
        for linear in zeroed:
            nn.init.zeros_(linear.weight)


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
        self.condition = nn.Linear(channels, width)
        self.start = nn.Parameter(torch.empty(width))  # [EOS]
        self.modality = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_grid(rows, columns, width), persistent=False)

    def forward(self, latent: Tensor, condition: Tensor | None) -> Tensor:
        """Return the tokens (B, count, D) of ``latent`` and the clean ``condition``, both (B, C, rows, columns)."""
        if condition is None:
            condition = torch.zeros_like(latent)
        dtype = self.start.dtype  # not that of the buffer, which an engine may leave in float32
        latent, condition = (x.to(dtype).flatten(2).mT for x in (latent, condition))  # (B, rows·columns, C)
        x = self.latent(latent) + self.condition(condition)  # (B, rows·columns, D)
        x = x + self.positions.to(dtype) + self.modality
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + rows·columns, D)


class PreviousEmbedding(nn.Module):
    """One modality of the previous clip as tokens, one for each position of its latent, row by row."""

    positions: Tensor  # (rows·columns, D), a buffer that is not saved

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.latent = nn.Linear(channels + 1, width)
        self.register_buffer("positions", sincos_grid(rows, columns, width), persistent=False)

    def forward(self, latent: Tensor, previous: Tensor | None) -> Tensor:
        """Return the tokens (B, rows·columns, D) of ``previous`` (B, C + 1, rows, columns).

        None is the same as zeros, shaped as for ``latent`` (B, C, rows, columns): no sample has a previous clip.
        """
        if previous is None:
            previous = latent.new_zeros(len(latent), latent.shape[1] + 1, *latent.shape[2:])
        dtype = self.latent.weight.dtype
        tokens = previous.to(dtype).flatten(2).mT  # (B, rows·columns, C + 1)
        return self.latent(tokens) + self.positions.to(dtype)


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
    """A block of the control branch, with the zero-initialised linear layer whose output is added to the trunk."""

    def __init__(self, block: Block, width: int) -> None:
        super().__init__()
        self.block = block
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, modulation: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """Return the block's output and what is added to the trunk, (B, N, D) each, for ``x`` (B, N, D)."""
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
    """Return the 2-D position embedding (rows·columns, width): half the channels embed the row, half the column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(row.flatten(), width // 2), sincos(column.flatten(), width // 2)], dim=1)
