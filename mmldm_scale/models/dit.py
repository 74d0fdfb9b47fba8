"""The audio-video diffusion transformer (section 3.2), which predicts the noise in an audio and a video latent jointly.

With another ``diffusion.prediction`` the same network predicts v or the velocity instead
(:mod:`mmldm_scale.diffusion.noise_process`). Each position of a latent is one token (patch size 1), and full
self-attention runs over the sequence::

    [context tokens] [EOS_a] [audio tokens] [EOS_v] [video tokens]

Time modulates every block (adaLN-zero). A clean latent given as a condition (section 3.3) is embedded by a
zero-initialised linear layer and added to its modality's tokens; the null condition is a latent of zeros.
``PRESETS["L"]`` is the configuration of a preset; S, B and L are the paper's sizes.

With ``config.continuation`` the model also continues a clip, as the public code does it. The previous clip's latents
enter in two ways. A linear layer makes a context token of each of their positions, behind the other context tokens. And
a control branch with half as many blocks reads ⟨previous, noisy⟩ latents of 2C channels; it has layers of its own for
latents, [EOS], context and time, and a linear layer without bias, which starts at zero, takes the output of its block i
to where it is added to that of the trunk's block i. A previous clip, or a modality of it, that is missing is zeros.

Shapes: B clips, N tokens, D = ``config.width``, H heads; latents are (B, C, rows, columns).
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmldm_scale.config import DiTConfig, presets
from mmldm_scale.config.media import Shape
from mmldm_scale.models.attention import choose_backend
from mmldm_scale.models.dit_layers import (
    Block,
    ConditionedEmbedding,
    ControlBlock,
    ControlEmbedding,
    FinalLayer,
    LatentEmbedding,
    TimeEmbedding,
    by_position,
    or_zeros,
)

LAYOUT = 2  # of the layers that continue a clip, in a weights folder's config.json; without it, they are of layout 1


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


def layout_problem(description: Mapping[str, Any]) -> str | None:
    """Return why this version cannot read the weights that ``description``, their config.json, belongs to; else None.

    Models that continue no clip are the same in all layouts.
    """
    layout, model = description.get("layout", 1), description.get("model")
    if layout == LAYOUT or not (isinstance(model, Mapping) and model.get("continuation")):
        return None
    return (
        f"holds a model with model.continuation=true of layout {layout!r:.20}, but this version reads layout {LAYOUT}; "
        "use the version that wrote it, or train another run, which may begin with these weights (init=)"
    )


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
        self.embed_audio = ConditionedEmbedding(audio_shape, width)
        self.embed_video = ConditionedEmbedding(video_shape, width)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        if config.continuation:
            self.embed_previous_audio = nn.Linear(audio_shape[0], config.context_width)
            self.embed_previous_video = nn.Linear(video_shape[0], config.context_width)
            self.embed_control = ControlEmbedding(audio_shape, video_shape, config.context_width, width)
        controls = config.depth // 2 if config.continuation else 0
        self.control = nn.ModuleList(ControlBlock(self._block(), width) for _ in range(controls))
        self.final_audio = FinalLayer(audio_shape, width)
        self.final_video = FinalLayer(video_shape, width)
        if config.context_tokens:
            self.null_context = nn.Parameter(torch.empty(config.context_tokens, config.context_width))
        if config.context_tokens or config.continuation:
            self.embed_context = nn.Linear(config.context_width, width)
        if classes:
            self.embed_class = nn.Embedding(classes, config.context_width)
        self._initialise()

    def _block(self) -> Block:
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
            previous_audio: (B, C, Ha, Wa), the previous clip's clean audio latents; zeros for samples that do not have
                them. None: no sample has them.
            previous_video: (B, C, Hv, Wv), likewise.

        Returns:
            The predicted noise of audio (B, C, Ha, Wa) and video (B, C, Hv, Wv).

        Raises:
            ValueError: a label, context or previous clip is passed to a model built without them.
        """
        dtype = self.embed_audio.start.dtype
        backend = choose_backend(self.config.attention, audio.device, dtype, self.config.width // self.config.heads)
        modulation = self.time.embed(time, dtype)  # (B, 1, D)
        previous = self._previous(audio, video, previous_audio, previous_video)  # (B, C, H, W) of each modality, if any
        context_parts = [  # (B, T, W) each, if any
            *self._context_tokens(len(audio), label, context, context_length),
            *self._previous_tokens(previous),
        ]
        parts = [self.embed_audio(audio, audio_condition), self.embed_video(video, video_condition)]  # (B, 1 + H·W, D)
        if context_parts:
            parts.insert(0, self.embed_context(torch.cat(context_parts, dim=1)))  # (B, T, D)
        x = torch.cat(parts, dim=1)  # (B, N, D)
        if previous:
            start = self.embed_control(*previous, audio, video, time, torch.cat(context_parts, dim=1))
            branch, branch_modulation = start  # (B, N, D) and (B, 1, D)
        for block, control in itertools.zip_longest(self.blocks, self.control):
            x = block(x, modulation, backend)
            if control is not None:
                branch, correction = control(branch, branch_modulation, backend)
                x = x + correction
        *_, audio_tokens, video_tokens = x.split([part.shape[1] for part in parts], dim=1)  # as in parts
        return self.final_audio(audio_tokens, modulation), self.final_video(video_tokens, modulation)

    def _previous(
        self, audio: Tensor, video: Tensor, previous_audio: Tensor | None, previous_video: Tensor | None
    ) -> list[Tensor]:
        """Return the previous clip's audio and video latents, zeros for None; [] if the model continues no clip."""
        if self.config.continuation:
            return [or_zeros(previous_audio, audio), or_zeros(previous_video, video)]
        if not (previous_audio is None and previous_video is None):
            raise ValueError("DiT.forward: a previous clip needs model.continuation=true, this model has false")
        return []

    def _previous_tokens(self, previous: list[Tensor]) -> Iterator[Tensor]:
        """Yield the context tokens (B, H·W, W) of the ``previous`` clip's audio and video latents, if there are any."""
        if previous:
            for embed, latent in zip((self.embed_previous_audio, self.embed_previous_video), previous, strict=True):
                yield embed(by_position(latent, embed.weight.dtype))

    def _context_tokens(
        self, batch: int, label: Tensor | None, context: Tensor | None, length: Tensor | None
    ) -> list[Tensor]:
        """Return the context's tokens (B, context_tokens, W) in a list, which is empty where there are none.

        W = ``context_width``; ``embed_context`` projects them to the width of the other tokens.
        """
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
        return [tokens]

    def _initialise(self) -> None:
        """Initialise linear layers by Xavier, embeddings by N(0, 0.02²), and each path's last layer to zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        times = [self.time, *([self.embed_control.time] if self.config.continuation else [])]
        embeddings: list[Tensor] = [layer.weight for time in times for layer in time if isinstance(layer, nn.Linear)]
        zeroed: list[nn.Linear] = []
        for module in self.modules():
            if isinstance(module, Block):
                zeroed.append(module.modulation)
            elif isinstance(module, ControlBlock):
                zeroed.append(module.out)
            elif isinstance(module, LatentEmbedding):
                embeddings += [module.start, module.modality]
                if isinstance(module, ConditionedEmbedding):
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
