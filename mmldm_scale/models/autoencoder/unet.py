"""The signal decoder's U-Net: diffusers' UNet2DConditionModel, and two ways to add features to it (section 3.1).

The paper adds features of the perceptual latent to the outputs of the U-Net's encoder, which can be read in two ways:

- :func:`predict_inside`, the public code's: each is added to the running hidden state, so that the layers that follow
  in the encoder and the middle see it too;
- :func:`predict_skips`, diffusers' additional residuals: each is added only to what the decoder's skips read.

Both add the last one to the middle's output. Parameters and shapes are the same, and so is the output if all features
are zero.

Shapes: N pictures; latents (N, c, s, s); hidden states (N, D, H, W).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from mmldm_scale.config import AutoencoderConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.models.autoencoder.blocks import norm_groups, zeroed
from mmldm_scale.models.recompute import Recomputation, recompute

MASKED = -10000.0  # diffusers' addition to the scores of attention for a token that is not read


@dataclass(frozen=True)
class UNetInputs:
    """The inputs of the U-Net for N pictures."""

    noisy: Tensor  # (N, c, s, s), noisy latents in the U-Net's precision
    time: Tensor  # (N,) int64, their timesteps
    content: Tensor  # (N, E), added to the time embedding once embedded
    tokens: Tensor  # (N, T, D), read by cross-attention
    mask: Tensor | None  # (N, T) bool, the tokens that are read; None: all
    features: list[Tensor]  # (N, D, H, W) each, for the outputs of the encoder and, last, of the middle


def predict_skips(unet: UNet2DConditionModel, inputs: UNetInputs) -> Tensor:
    """Return the output (N, c, s, s) of ``unet`` with the features added to its skips and to its middle's output."""
    *of_encoder, of_middle = inputs.features
    output: Tensor = unet(
        inputs.noisy,
        inputs.time,
        encoder_hidden_states=inputs.tokens,
        encoder_attention_mask=inputs.mask,
        class_labels=inputs.content,
        down_block_additional_residuals=of_encoder,
        mid_block_additional_residual=of_middle,
        return_dict=False,
    )[0]
    return output


def predict_inside(unet: UNet2DConditionModel, inputs: UNetInputs) -> Tensor:
    """Return the output (N, c, s, s) of ``unet`` with the features added to its encoder's hidden states.

    The steps are those of diffusers' forward pass, with h = h + feature wherever it keeps a hidden state for a skip.
    """
    *of_encoder, of_middle = inputs.features
    features = iter(of_encoder)
    embedding = unet.time_embedding(unet.get_time_embed(inputs.noisy, inputs.time))  # (N, E)
    embedding = embedding + unet.get_class_embed(inputs.noisy, class_labels=inputs.content)
    reading = _reading(inputs)
    hidden = unet.conv_in(inputs.noisy) + next(features)
    skips = [hidden]
    for block in unet.down_blocks:
        for layer in _layers(block, embedding, reading):
            hidden = layer(hidden) + next(features)
            skips.append(hidden)
    hidden = unet.mid_block(hidden, embedding, **reading) + of_middle
    for block in unet.up_blocks:
        count = len(cast(nn.ModuleList, block.resnets))  # each reads one skip
        used = tuple(skips[-count:])
        del skips[-count:]
        size = skips[-1].shape[2:] if skips else None  # of its output, which may be odd
        hidden = block(hidden, used, embedding, upsample_size=size, **(reading if _attends(block) else {}))
    output: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return output


def _layers(block: nn.Module, embedding: Tensor, reading: dict[str, Any]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what leads from each hidden state of the encoder's ``block`` that a skip keeps to the next one.

    As in diffusers, only the residual blocks' activations are recomputed, not those of attention.
    """
    parts: Any = block
    attentions = parts.attentions if _attends(block) else [None] * len(parts.resnets)
    for resnet, attention in zip(parts.resnets, attentions, strict=True):

        def step(hidden: Tensor, resnet: nn.Module = resnet, attention: nn.Module | None = attention) -> Tensor:
            mode: Recomputation = "full" if parts.gradient_checkpointing else "none"
            hidden = recompute(resnet, mode, hidden, embedding)
            return hidden if attention is None else attention(hidden, **reading, return_dict=False)[0]

        yield step
    yield from parts.downsamplers or ()


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _reading(inputs: UNetInputs) -> dict[str, Any]:
    """Return the arguments of cross-attention, in which the mask is an addition to its scores."""
    if inputs.mask is None:
        return {"encoder_hidden_states": inputs.tokens}
    scores = (1 - inputs.mask.to(inputs.noisy.dtype)) * MASKED
    return {"encoder_hidden_states": inputs.tokens, "encoder_attention_mask": scores[:, None]}


def build_unet(config: AutoencoderConfig, widths: list[int], noise_shape: Shape) -> UNet2DConditionModel:
    """Return a U-Net for latents of ``noise_shape`` with ``widths`` channels at its levels.

    The last layer of its class embedding, which takes the conditions' ``content``, is zero.
    """
    unet, content_width = config.decoder, config.decoder.width + config.latent_channels * config.pooled_latent
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in unet.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(unet.attention)]
    model = UNet2DConditionModel(
        sample_size=noise_shape[1],
        in_channels=noise_shape[0],
        out_channels=noise_shape[0],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(widths),
        layers_per_block=unet.blocks,
        cross_attention_dim=config.semantic_width,
        attention_head_dim=unet.heads,  # diffusers' name for the number of heads
        norm_num_groups=norm_groups(unet.width),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=content_width,
    )
    zeroed(model.class_embedding.linear_2)  # a TimestepEmbedding, as class_embed_type is "projection"
    if config.activation_checkpointing:
        model.enable_gradient_checkpointing()
    return model
