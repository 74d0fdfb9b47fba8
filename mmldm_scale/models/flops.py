"""The arithmetic of a DiT by formula, and the table of its presets.

A MAC is one multiply-accumulate; FLOPs are twice the MACs. Papers often report the MACs of a DiT's linear layers alone
as its "FLOPs", so that :class:`DiTMacs` keeps linear layers and attention apart. ``print(model_info())`` shows the
table of the presets.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from mmldm_scale.config import DiTConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.models.dit import PRESETS, DiT, latent_shapes
from mmldm_scale.models.dit_layers import FREQUENCIES

# The paper's latents of 16 frames of 256 × 256 pixels and their sound: channels, rows, columns.
AUDIO_SHAPE, VIDEO_SHAPE = (16, 8, 8), (16, 16, 16)


@dataclass(frozen=True)
class DiTMacs:
    """MACs of the forward pass of one sample, of linear layers and of attention's two matrix products."""

    linear: int
    attention: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the forward pass of one sample; training takes three times as many."""
        return 2 * (self.linear + self.attention)


def dit_macs(config: DiTConfig, audio_shape: Shape | None, video_shape: Shape | None) -> DiTMacs:
    """Return the MACs of one sample in a DiT for latents of ``audio_shape`` and ``video_shape``, those that it has.

    A block has (4 + 2r)·d²·N + 6·d² MACs in linear layers and 2·N²·d in attention, where r is the MLP ratio, d the
    width and N the number of tokens; adaLN runs once a sample, not once a token. With ``config.continuation`` there is
    one more context token for each position of the latents, and a control branch with half as many blocks, each
    followed by a linear layer, and with embeddings of its own for time, context and ⟨previous, noisy⟩ latents.
    """
    d, control_blocks = config.width, config.depth // 2 if config.continuation else 0
    shapes = latent_shapes(config, audio_shape, video_shape).values()
    positions = [shape[1] * shape[2] for shape in shapes]
    tokens = config.context_tokens + sum(positions) * (2 if config.continuation else 1) + len(positions)
    block = (4 + 2 * config.mlp_ratio) * d * d * tokens + 6 * d * d
    stems = 2 if config.continuation else 1  # each embeds time and context
    context = config.context_tokens + (sum(positions) if config.continuation else 0)
    times = stems + config.average_velocity
    ends = times * (FREQUENCIES * d + d * d) + stems * context * config.context_width * d
    for shape, count in zip(shapes, positions, strict=True):
        ends += 3 * shape[0] * d * count + 2 * d * d  # embedding, condition and output; the output's adaLN
        if config.continuation:
            ends += shape[0] * config.context_width * count  # the previous clip's context tokens
            ends += 2 * shape[0] * d * count  # the branch's embedding of ⟨previous, noisy⟩
    blocks = config.depth + control_blocks
    linear = blocks * block + control_blocks * d * d * tokens + ends
    return DiTMacs(linear=linear, attention=blocks * 2 * tokens**2 * d)


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of ``module``."""
    return sum(parameter.numel() for parameter in module.parameters())


def model_info() -> str:
    """Return a table of the DiT presets: parameters (millions), and linear MACs and forward FLOPs of a sample (10⁹).

    Each preset has a row with context tokens, one without, and one for each modality alone.
    """
    rows = [f"{'preset':<7}{'depth × width, heads':<23}{'context':>7}{'tokens':>8}{'parameters':>13}"]
    rows[0] += f"{'linear MACs':>13}{'forward FLOPs':>15}  modalities"
    for name, preset in PRESETS.items():
        alone = [replace(preset, modalities=[modality]) for modality in ("video", "audio")]
        for config in (preset, replace(preset, context_tokens=0), *alone):
            with torch.device("meta"):
                model = DiT(config, AUDIO_SHAPE, VIDEO_SHAPE)
            macs = dit_macs(config, AUDIO_SHAPE, VIDEO_SHAPE)
            tokens = config.context_tokens + model.latent_tokens
            size = f"{config.depth} × {config.width}, {config.heads}"
            rows.append(
                f"{name:<7}{size:<23}{config.context_tokens:>7}{tokens:>8}{parameters(model) / 1e6:>11.1f} M"
                f"{macs.linear / 1e9:>11.1f} G{macs.flops / 1e9:>13.1f} G  {', '.join(config.modalities)}"
            )
    return "\n".join(rows)
