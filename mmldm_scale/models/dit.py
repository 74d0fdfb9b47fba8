"""The audio-video diffusion transformer (section 3.2), which predicts the noise in an audio and a video latent jointly.

With another ``diffusion.prediction`` the same network predicts v or the velocity instead
(:mod:`mmldm_scale.diffusion.noise_process`). Each position of a latent is one token (patch size 1), and full
self-attention runs over the sequence::

    [context tokens] [EOS_a] [audio tokens] [EOS_v] [video tokens]

Time modulates every block (adaLN-zero). A clean latent given as a condition (section 3.3) is embedded by a
zero-initialised linear layer and added to its modality's tokens; the null condition is a latent of zeros. A model of
one modality alone (MM-LDM-a and MM-LDM-v of Table 1) has the tokens and layers of that one only.
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
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmldm_scale.common.modalities import Modality, as_pair, by_modality
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


def latent_shapes(config: DiTConfig, audio_shape: Shape | None, video_shape: Shape | None) -> dict[Modality, Shape]:
    """Return the shapes (C, H, W) of the latents that a model of ``config`` has; raise ValueError if one is None."""
    shapes = by_modality(audio_shape, video_shape)
    missing = [name for name in config.modalities if name not in shapes]
    if missing:
        raise ValueError(f"the shape of the {missing[0]} latents is needed")
    return {name: shapes[name] for name in config.modalities}


class DiT(nn.Module):
    """Noise prediction ε(z_a^t, z_v^t, t; z_a, z_v) for latents of ``audio_shape`` and ``video_shape``, (C, H, W).

    Computes in the dtype of its parameters, whatever the dtype of its inputs.

    Args:
        audio_shape: (C, Ha, Wa); without effect, and None if one likes, in a model without audio.
        video_shape: (C, Hv, Wv), likewise.
        classes: number of classes that a label can name; 0: no class embedding.

    Attributes:
        latent_tokens: number of tokens of the latents, each modality's [EOS] included.
    """

    def __init__(
        self, config: DiTConfig, audio_shape: Shape | None, video_shape: Shape | None, classes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        width, shapes = config.width, latent_shapes(config, audio_shape, video_shape)
        self.latent_tokens = sum(1 + rows * columns for _, rows, columns in shapes.values())
        for name, shape in shapes.items():
            self.add_module(f"embed_{name}", ConditionedEmbedding(shape, width))
        self.time = TimeEmbedding(width)
        if config.average_velocity:
            self.span = TimeEmbedding(width)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        if config.continuation:
            for name, shape in shapes.items():
                self.add_module(f"embed_previous_{name}", nn.Linear(shape[0], config.context_width))
            self.embed_control = ControlEmbedding(shapes["audio"], shapes["video"], config.context_width, width)
        controls = config.depth // 2 if config.continuation else 0
        self.control = nn.ModuleList(ControlBlock(self._block(), width) for _ in range(controls))
        for name, shape in shapes.items():
            self.add_module(f"final_{name}", FinalLayer(shape, width))
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
        audio: Tensor | None,
        video: Tensor | None,
        time: Tensor,
        audio_condition: Tensor | None = None,
        video_condition: Tensor | None = None,
        *,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_length: Tensor | None = None,
        previous_audio: Tensor | None = None,
        previous_video: Tensor | None = None,
        span: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Predict the noise in ``audio`` (B, C, Ha, Wa) and ``video`` (B, C, Hv, Wv) at timestep ``time`` (B,).

        The latents of a modality that the model does not have are None.

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
            span: (B,), how many timesteps before ``time`` the interval begins over which the predicted velocity is the
                average; None: 0, the velocity at this instant.

        Returns:
            The predicted noise of audio (B, C, Ha, Wa) and video (B, C, Hv, Wv); None for one that is missing.

        Raises:
            ValueError: latents are missing, or of a modality that the model does not have; or a label, context,
                previous clip or span is passed to a model built without them.
        """
        latents, given = by_modality(audio, video), by_modality(audio_condition, video_condition)
        if list(latents) != list(self.config.modalities):
            raise ValueError(f"DiT.forward: latents are needed of {', '.join(self.config.modalities)}")
        first, dtype = next(iter(latents.values())), next(self.parameters()).dtype
        previous = self._previous(latents, by_modality(previous_audio, previous_video))  # (B, C, H, W) each, if any
        context = torch.cat(  # (B, T, W), W = context_width; T = 0 if there is none
            [
                first.new_empty(len(first), 0, self.config.context_width, dtype=dtype),
                *self._context_tokens(len(first), label, context, context_length),
                *self._previous_tokens(previous),
            ],
            dim=1,
        )
        parts = [  # (B, 1 + H·W, D)
            self.get_submodule(f"embed_{name}")(latent, given.get(name)) for name, latent in latents.items()
        ]
        if context.shape[1]:
            parts.insert(0, self.embed_context(context))  # (B, T, D)
        modulation = self._modulation(time, span, dtype)  # (B, 1, D)
        branch = self.embed_control(*previous.values(), *latents.values(), time, context) if previous else None
        x = self._transform(torch.cat(parts, dim=1), modulation, branch)  # (B, N, D)
        tokens = x.split([part.shape[1] for part in parts], dim=1)[-len(latents) :]  # as in parts
        return as_pair(
            {
                name: self.get_submodule(f"final_{name}")(of_modality, modulation)
                for name, of_modality in zip(latents, tokens, strict=True)
            }
        )

    def _modulation(self, time: Tensor, span: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return what modulates every block, (B, 1, D): ``time`` (B,) embedded, and ``span`` (B,), if it is."""
        embedded = self.time.embed(time, dtype)
        if self.config.average_velocity:
            return embedded + self.span.embed(torch.zeros_like(time) if span is None else span, dtype)
        if span is not None:
            raise ValueError("DiT.forward: span needs model.average_velocity=true, this model has false")
        return embedded

    def _transform(self, x: Tensor, modulation: Tensor, branch: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the output of the trunk's blocks for ``x`` (B, N, D), with the corrections of the control branch.

        Args:
            modulation: (B, 1, D), embedding of the time.
            branch: the control branch's input (B, N, D) and modulation (B, 1, D); None: the model has no such branch.
        """
        backend = choose_backend(
            self.config.attention, x.device, modulation.dtype, self.config.width // self.config.heads
        )
        for block, control in itertools.zip_longest(self.blocks, self.control):
            x = block(x, modulation, backend)
            if control is not None and branch is not None:
                hidden, correction = control(*branch, backend)
                branch = hidden, branch[1]
                x = x + correction
        return x

    def _previous(
        self, latents: Mapping[Modality, Tensor], previous: Mapping[Modality, Tensor]
    ) -> dict[Modality, Tensor]:
        """Return the previous clip's latents, zeros where there are none; {} if the model continues no clip."""
        if self.config.continuation:
            return {name: or_zeros(previous.get(name), latent) for name, latent in latents.items()}
        if previous:
            raise ValueError("DiT.forward: a previous clip needs model.continuation=true, this model has false")
        return {}

    def _previous_tokens(self, previous: Mapping[Modality, Tensor]) -> Iterator[Tensor]:
        """Yield the context tokens (B, H·W, W) of the ``previous`` clip's audio and video latents, if there are any."""
        for name, latent in previous.items():
            embed = cast(nn.Linear, self.get_submodule(f"embed_previous_{name}"))
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
        if self.config.average_velocity:  # so that it begins undisturbed with the weights of a flow
            zeroed.append(cast(nn.Linear, self.span[2]))
        if self.config.context_tokens:
            embeddings.append(self.null_context)
        if self.classes:
            embeddings.append(self.embed_class.weight)
        for weight in embeddings:
            nn.init.normal_(weight, std=0.02)
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
