"""The signal decoder: one Stable-Diffusion-shaped U-Net that predicts the noise of video frames and audio images alike.

What it is to draw reaches it three ways (section 3.1, Figure 3b): as multi-scale features of the perceptual latent
added to its encoder's outputs, as the pooled latent with the frame's embedding added to its time embedding, and as the
other modality's semantic tokens, with a modality embedding, in its cross-attention. The first two start at zero, so
that a pretrained U-Net is at first undisturbed. Trained from scratch (``estimate: true``), it need not start from
nothing: a read-out of the features estimates the clean latent, the noise is guessed from that, and the U-Net corrects
the guess. :meth:`SignalDecoder.condition` computes all of it once for a clip;
:meth:`SignalDecoder.forward` is then called at every step of the sampler.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mmldm_scale.config import DiffusionConfig, UNetConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.models.autoencoder.blocks import norm_groups, unfold, zeroed
from mmldm_scale.models.autoencoder.pyramid import FeaturePyramid

Modality = Literal["audio", "video"]
Shape = tuple[int, int, int]

ESTIMATE_VARIANCE = 0.25  # of the estimate's error; the latents' own variance is 1


@dataclass(frozen=True)
class Condition:
    """What the U-Net is told about N pictures."""

    features: list[Tensor]  # (N, D, H, W) each: one for each output of the U-Net's encoder, the last for its middle
    content: Tensor  # (N, C + E): the pooled latent and the frame's embedding
    tokens: Tensor  # (N, T + 1, D): the other modality's semantic tokens and the modality's embedding
    estimate: Tensor | None  # (N, c, s, s): what the features alone make of the clean latent

    def select(self, rows: Tensor) -> "Condition":
        """Return the condition of the pictures ``rows``, (M,) int64, among the N: (M, …) in place of (N, …)."""
        estimate = None if self.estimate is None else self.estimate[rows]
        return Condition([level[rows] for level in self.features], self.content[rows], self.tokens[rows], estimate)


class SignalDecoder(nn.Module):
    """The U-Net and its conditioning, shared by both modalities except for the feature pyramids.

    Args:
        config: the U-Net's geometry.
        audio_shape, video_shape: (C, h, w) of the perceptual latents.
        noise_shape: (c, s, s) of the KL-VAE latents it denoises.
        frames: F, frames of a clip.
        semantic_width: width of the semantic tokens.
    """

    def __init__(
        self,
        config: UNetConfig,
        audio_shape: Shape,
        video_shape: Shape,
        noise_shape: Shape,
        frames: int,
        semantic_width: int,
    ) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        size = noise_shape[1]
        self.unet = _unet(config, widths, noise_shape, audio_shape[0] + config.width, semantic_width)
        self.pyramids = nn.ModuleDict(
            {
                "audio": FeaturePyramid(audio_shape, size, widths, config.blocks, 1, config.width),
                "video": FeaturePyramid(video_shape, size, widths, config.blocks, frames, config.width),
            }
        )
        self.schedule = scheduler(DiffusionConfig())
        self.estimators = nn.ModuleDict()
        if config.estimate:
            for name in ("audio", "video"):
                self.estimators[name] = zeroed(nn.Conv2d(widths[0], noise_shape[0], 3, padding=1))
        self.frame_embeddings = nn.ModuleDict(
            {"audio": nn.Embedding(1, config.width), "video": nn.Embedding(frames, config.width)}
        )
        self.modality_embeddings = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(1, 1, semantic_width)) for name in ("audio", "video")}
        )

    def condition(self, modality: Modality, latent: Tensor, frames: Tensor, other: Tensor) -> Condition:
        """Return the condition of K pictures a clip, clip by clip (N = B·K).

        Args:
            modality: which of the two the pictures are.
            latent: (B, C, h, w), the modality's perceptual latent.
            frames: (B, K) integers, which frames; zeros (B, 1) for the audio image.
            other: (B, T, D), the other modality's semantic tokens.
        """
        count = frames.shape[1]
        embedding = self.frame_embeddings[modality](frames).flatten(0, 1)  # (B·K, E)
        features, finest = self.pyramids[modality](latent, frames, embedding)
        estimate = None
        if self.estimators:
            channels, total = self.unet.config.in_channels, self.pyramids[modality].frames
            clips = unfold(latent, finest.shape[-1] // latent.shape[-1], channels, total)  # (B, F, c, s, s)
            shortcut = clips[torch.arange(len(clips), device=frames.device)[:, None], frames]  # (B, K, c, s, s)
            estimate = shortcut.flatten(0, 1) + self.estimators[modality](finest)  # (B·K, c, s, s)
        pooled = latent.mean(dim=(2, 3)).repeat_interleave(count, dim=0)  # (B·K, C)
        label = self.modality_embeddings[modality].expand(len(other), -1, -1)
        tokens = torch.cat([other, label], dim=1).repeat_interleave(count, dim=0)  # (B·K, T + 1, D)
        return Condition(features, torch.cat([pooled, embedding], dim=1), tokens, estimate)

    def forward(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the noise predicted in ``noisy`` (N, c, s, s) at ``time`` (N,) in 0..999, float32."""
        *features, middle = condition.features
        predicted = self.unet(
            noisy.to(self.unet.dtype),
            time,
            encoder_hidden_states=condition.tokens,
            class_labels=condition.content,
            down_block_additional_residuals=features,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()
        return predicted if condition.estimate is None else predicted + self._guess(noisy, time, condition.estimate)

    def _guess(self, noisy: Tensor, time: Tensor, estimate: Tensor) -> Tensor:
        """Return the noise in ``noisy`` to be expected if ``estimate`` is the clean latent up to a known error.

        With z^t = √ᾱ z + √(1 − ᾱ) n and z = ``estimate`` + e, both n and e Gaussian and independent, E[n | z^t] is the
        remainder z^t − √ᾱ · ``estimate`` times √(1 − ᾱ) / (1 − ᾱ + ᾱ · var e).
        """
        kept = self.schedule.alphas_cumprod.to(time.device)[time].view(-1, 1, 1, 1)  # ᾱ
        weight = (1 - kept).sqrt() / (1 - kept + kept * ESTIMATE_VARIANCE)
        return weight * (noisy.float() - kept.sqrt() * estimate.float())


def _unet(
    config: UNetConfig, widths: list[int], noise_shape: Shape, content_width: int, context_width: int
) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)]
    unet = UNet2DConditionModel(
        sample_size=noise_shape[1],
        in_channels=noise_shape[0],
        out_channels=noise_shape[0],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(widths),
        layers_per_block=config.blocks,
        cross_attention_dim=context_width,
        attention_head_dim=config.heads,  # the library's name for the number of heads
        norm_num_groups=norm_groups(config.width),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=content_width,
    )
    zeroed(unet.class_embedding.linear_2)
    return unet
