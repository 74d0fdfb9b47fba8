"""The signal decoder: one Stable-Diffusion-shaped U-Net that predicts the noise of video frames and audio images alike.

What it is to draw reaches it three ways (section 3.1, Figure 3b): as multi-scale features of the perceptual latent
added to its encoder's outputs, as the pooled latent with the frame's embedding added to its time embedding, and in its
cross-attention, as the other modality's semantic tokens with a class and a modality embedding. The first two start at
zero, so that a pretrained U-Net is at first undisturbed. Trained from scratch (``estimate: true``), it need not start
from nothing: a read-out of the features estimates the clean latent, the noise is guessed from that, and the U-Net
corrects the guess. :meth:`SignalDecoder.condition` computes all of it once for a clip;
:meth:`SignalDecoder.forward` is then called at every step of the sampler.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mmldm_scale.config import AutoencoderConfig, DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.models.autoencoder.blocks import norm_groups, unfold, zeroed
from mmldm_scale.models.autoencoder.context import Context
from mmldm_scale.models.autoencoder.pyramid import FeaturePyramid

Modality = Literal["audio", "video"]
Shape = tuple[int, int, int]

MODALITIES: tuple[Modality, Modality] = ("audio", "video")
ESTIMATE_VARIANCE = 0.25  # of the estimate's error; the latents' own variance is 1


@dataclass(frozen=True)
class Condition:
    """What the U-Net is told about N pictures."""

    features: list[Tensor]  # (N, D, H, W) each: one for each output of the U-Net's encoder, the last for its middle
    content: Tensor  # (N, C + E): the pooled latent and the frame's embedding
    tokens: Tensor  # (N, T, D): the other modality's semantics, the class and the modality
    mask: Tensor | None  # (N, T) bool: which tokens are to be seen; None: all
    estimate: Tensor | None  # (N, c, s, s): what the features alone make of the clean latent
    unet: str  # which U-Net draws them: "shared" by both modalities, or "audio" or "video"

    @classmethod
    def join(cls, parts: Sequence["Condition"]) -> "Condition":
        """Return the condition of all pictures of ``parts``, in that order; shorter tokens are padded and masked.

        Raises:
            ValueError: the parts are for different U-Nets.
        """
        if len({part.unet for part in parts}) != 1:
            raise ValueError("conditions of different U-Nets cannot be joined")
        features = [torch.cat(level) for level in zip(*(part.features for part in parts), strict=True)]
        estimate = None if parts[0].estimate is None else torch.cat([part.estimate for part in parts])
        longest = max(part.tokens.shape[1] for part in parts)
        tokens = [F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts]
        whole = all(part.mask is None and part.tokens.shape[1] == longest for part in parts)
        mask = None if whole else torch.cat([part._seen(longest) for part in parts])
        content = torch.cat([part.content for part in parts])
        return cls(features, content, torch.cat(tokens), mask, estimate, parts[0].unet)

    def select(self, rows: Tensor) -> "Condition":
        """Return the condition of the pictures ``rows``, (M,) int64, among the N: (M, …) in place of (N, …)."""
        return replace(
            self,
            features=[level[rows] for level in self.features],
            content=self.content[rows],
            tokens=self.tokens[rows],
            mask=None if self.mask is None else self.mask[rows],
            estimate=None if self.estimate is None else self.estimate[rows],
        )

    def _seen(self, length: int) -> Tensor:
        """Return the mask (N, ``length``) once the tokens are padded to ``length``."""
        seen = self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        return F.pad(seen, (0, length - seen.shape[1]))


class SignalDecoder(nn.Module):
    """The U-Net and its conditioning: one U-Net for both modalities, or one each (``config.shared_decoder``).

    Feature pyramids, frame embeddings and contexts are each modality's own; U-Nets and class embeddings are kept under
    the name "shared", or else under "audio" and "video".

    Args:
        config: of the whole autoencoder.
        audio_shape, video_shape: (C, h, w) of the perceptual latents.
        noise_shape: (c, s, s) of the KL-VAE latents it denoises.
        frames: F, frames of a clip.
        classes: how many there are to be told; one more embedding stands for an unknown one.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        audio_shape: Shape,
        video_shape: Shape,
        noise_shape: Shape,
        frames: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.config, self.classes, unet = config, classes, config.decoder
        widths = [unet.width * multiplier for multiplier in unet.multipliers]
        self.schedule = scheduler(DiffusionConfig())
        self.unets, self.class_embeddings = nn.ModuleDict(), nn.ModuleDict()
        for name in ("shared",) if config.shared_decoder else MODALITIES:
            self.unets[name] = _unet(config, widths, noise_shape)
            if config.semantics:
                self.class_embeddings[name] = nn.Embedding(classes + 1, config.semantic_width)  # last: unknown
                nn.init.normal_(self.class_embeddings[name].weight, std=0.02)
        self.pyramids, self.contexts = nn.ModuleDict(), nn.ModuleDict()
        self.frame_embeddings, self.estimators = nn.ModuleDict(), nn.ModuleDict()
        lengths, shapes = {"audio": 1, "video": frames}, {"audio": audio_shape, "video": video_shape}
        for name, other in (MODALITIES, MODALITIES[::-1]):
            self.pyramids[name] = FeaturePyramid(config, shapes[name], noise_shape[1], lengths[name])
            self.frame_embeddings[name] = nn.Embedding(lengths[name], unet.width)
            semantics = math.prod(shapes[other][1:]) if config.semantics else 0
            self.contexts[name] = Context(semantics, config.semantic_width)
            if unet.estimate:
                self.estimators[name] = zeroed(nn.Conv2d(widths[0], noise_shape[0], 3, padding=1))

    def condition(
        self,
        modality: Modality,
        latent: Tensor,
        frames: Tensor,
        other: Tensor | None,
        labels: Tensor | None,
        dropped: Tensor | None = None,
    ) -> Condition:
        """Return the condition of K pictures a clip, clip by clip (N = B·K).

        Args:
            modality: which of the two the pictures are.
            latent: (B, C, h, w), the modality's perceptual latent.
            frames: (B, K) integers, which frames; zeros (B, 1) for the audio image.
            other: (B, T, D), the other modality's semantic tokens; None where the model has no semantics.
            labels: (B,) int64, the clips' classes, -1 for an unknown one; None: all unknown.
            dropped: (B, K) bool, which pictures are not told of semantics and class; None: none of them.
        """
        name = "shared" if self.config.shared_decoder else modality
        count = frames.shape[1]
        embedding = self.frame_embeddings[modality](frames).flatten(0, 1)  # (B·K, E)
        features, finest = self.pyramids[modality](latent, frames, embedding)
        content, told = embedding, None
        if self.config.pooled_latent:
            pooled = latent.mean(dim=(2, 3)).repeat_interleave(count, dim=0)  # (B·K, C)
            content = torch.cat([pooled, embedding], dim=1)
        if other is not None:
            known = self._class(name, labels, other)  # (B, 1, D)
            told = torch.cat([other, known], dim=1).repeat_interleave(count, dim=0)  # (B·K, T + 1, D)
        tokens = self.contexts[modality](len(content), told, None if dropped is None else dropped.flatten())
        estimate = self._estimate(modality, latent, frames, finest) if self.estimators else None
        return Condition(features, content, tokens, None, estimate, name)

    def null(self, modality: Modality, condition: Condition) -> Condition:
        """Return ``condition``, of pictures of ``modality``, without semantics and class: what guidance leads from."""
        return replace(condition, tokens=self.contexts[modality](len(condition.tokens)))

    def forward(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the noise predicted in ``noisy`` (N, c, s, s) at ``time`` (N,) in 0..999, float32."""
        *features, middle = condition.features
        unet = self.unets[condition.unet]
        predicted = unet(
            noisy.to(unet.dtype),
            time,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            class_labels=condition.content,
            down_block_additional_residuals=features,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()
        return predicted if condition.estimate is None else predicted + self._guess(noisy, time, condition.estimate)

    def _class(self, name: str, labels: Tensor | None, other: Tensor) -> Tensor:
        """Return the embeddings (B, 1, D) of ``labels``, for the clips of ``other`` (B, T, D)."""
        if labels is None:
            labels = torch.full((len(other),), -1, device=other.device)
        rows = torch.where(labels < 0, self.classes, labels)
        return self.class_embeddings[name](rows)[:, None]

    def _estimate(self, modality: Modality, latent: Tensor, frames: Tensor, finest: Tensor) -> Tensor:
        """Return what the features ``finest`` (B·K, D, s, s) make of the clean latents: (B·K, c, s, s)."""
        read = self.estimators[modality](finest)
        if not self.config.shortcut:
            return read
        channels, total = read.shape[1], self.pyramids[modality].frames
        clips = unfold(latent, finest.shape[-1] // latent.shape[-1], channels, total)  # (B, F, c, s, s)
        folded = clips[torch.arange(len(clips), device=frames.device)[:, None], frames]  # (B, K, c, s, s)
        return folded.flatten(0, 1) + read

    def _guess(self, noisy: Tensor, time: Tensor, estimate: Tensor) -> Tensor:
        """Return the noise in ``noisy`` to be expected if ``estimate`` is the clean latent up to a known error.

        With z^t = √ᾱ z + √(1 − ᾱ) n and z = ``estimate`` + e, both n and e Gaussian and independent, E[n | z^t] is the
        remainder z^t − √ᾱ · ``estimate`` times √(1 − ᾱ) / (1 − ᾱ + ᾱ · var e).
        """
        kept = self.schedule.alphas_cumprod.to(time.device)[time].view(-1, 1, 1, 1)  # ᾱ
        weight = (1 - kept).sqrt() / (1 - kept + kept * ESTIMATE_VARIANCE)
        return weight * (noisy.float() - kept.sqrt() * estimate.float())


def _unet(config: AutoencoderConfig, widths: list[int], noise_shape: Shape) -> UNet2DConditionModel:
    """Return a U-Net for pictures of ``noise_shape``, with ``widths`` by level, that content does not disturb yet."""
    unet, content = config.decoder, config.decoder.width + config.latent_channels * config.pooled_latent
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
        attention_head_dim=unet.heads,  # the library's name for the number of heads
        norm_num_groups=norm_groups(unet.width),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=content,
    )
    zeroed(model.class_embedding.linear_2)
    if config.activation_checkpointing:
        model.enable_gradient_checkpointing()
    return model
