"""The signal decoder: one Stable-Diffusion-shaped U-Net that predicts the noise of video frames and audio images.

Its conditions reach it in three ways (section 3.1, Figure 3b): multi-scale features of the perceptual latent are added
to its encoder's outputs (``unet.py``); the pooled latent and the frame's embedding are added to its time embedding; and
its cross-attention reads the other modality's semantic tokens, a class embedding and a modality embedding. The first
two are zero-initialised, so that a pretrained U-Net starts undisturbed.

For training from scratch, ``decoder.estimate: true`` (ours) lets a convolution estimate the clean latent from the
features; the noise that this implies is added to the U-Net's output, which so corrects it.
:meth:`SignalDecoder.condition` computes the conditions once for a clip, and :meth:`SignalDecoder.forward` is called at
every step of the sampler.

Shapes: B clips, K pictures of each, N = B·K pictures; KL-VAE latents are (N, c, s, s), perceptual latents (B, C, h, w).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from mmldm_scale.common.modalities import OTHER, Modality
from mmldm_scale.config import AutoencoderConfig, DiffusionConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion.noise_process import Diffusion
from mmldm_scale.models.autoencoder.blocks import unfold, zeroed
from mmldm_scale.models.autoencoder.context import Context
from mmldm_scale.models.autoencoder.pyramid import FeaturePyramid
from mmldm_scale.models.autoencoder.unet import UNetInputs, build_unet, predict_inside, predict_skips

NOISE = DiffusionConfig()  # Stable Diffusion's noise schedule, predicting ε, with which the U-Net is pretrained
ESTIMATE_VARIANCE = 0.25  # assumed variance of the error of an estimate; clean latents have variance 1


@dataclass(frozen=True)
class Condition:
    """The inputs of the U-Net, besides noisy latents and time, for N pictures."""

    features: list[Tensor]  # (N, D, H, W) each: for the outputs of the U-Net's encoder and, last, of its middle
    content: Tensor  # (N, C + E): the pooled latent and the frame's embedding
    tokens: Tensor  # (N, T, D): the other modality's semantic tokens, the class and the modality
    mask: Tensor | None  # (N, T) bool: the tokens that cross-attention reads; None: all
    estimate: Tensor | None  # (N, c, s, s): the clean latent as estimated from the features; None without estimate
    unet: str  # the U-Net of these pictures: "shared" by both modalities, or "audio" or "video"

    @classmethod
    def join(cls, parts: Sequence["Condition"]) -> "Condition":
        """Return the condition of all pictures of ``parts``, in that order; shorter tokens are padded and masked.

        Raises:
            ValueError: the parts are for different U-Nets, or only some of them have an estimate.
        """
        if len({part.unet for part in parts}) != 1:
            raise ValueError("conditions of different U-Nets cannot be joined")
        features = [torch.cat(level) for level in zip(*(part.features for part in parts), strict=True)]
        estimates = [part.estimate for part in parts if part.estimate is not None]
        if len(estimates) not in (0, len(parts)):
            raise ValueError("conditions with and without an estimate cannot be joined")
        longest = max(part.tokens.shape[1] for part in parts)
        tokens = [F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts]
        unmasked = all(part.mask is None and part.tokens.shape[1] == longest for part in parts)
        return cls(
            features=features,
            content=torch.cat([part.content for part in parts]),
            tokens=torch.cat(tokens),
            mask=None if unmasked else torch.cat([part._padded_mask(longest) for part in parts]),
            estimate=torch.cat(estimates) if estimates else None,
            unet=parts[0].unet,
        )

    def select(self, rows: Tensor) -> "Condition":
        """Return the condition of the M pictures with indices ``rows``, (M,) int64: tensors (M, ...) for (N, ...)."""
        return replace(
            self,
            features=[level[rows] for level in self.features],
            content=self.content[rows],
            tokens=self.tokens[rows],
            mask=None if self.mask is None else self.mask[rows],
            estimate=None if self.estimate is None else self.estimate[rows],
        )

    def _padded_mask(self, length: int) -> Tensor:
        """Return the mask (N, ``length``) for tokens that are padded to ``length``."""
        mask = self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        return F.pad(mask, (0, length - mask.shape[1]))


class SignalDecoder(nn.Module):
    """The U-Net and its conditioning: one U-Net for both modalities, or one each (``config.shared_decoder``).

    Each modality has its own feature pyramid, frame embeddings and context. U-Nets and class embeddings have the key
    "shared", or else the keys "audio" and "video". A decoder of one modality alone has class embeddings only if there
    are classes (ours).

    Args:
        config: configuration of the whole autoencoder.
        shapes: (C, h, w) of the perceptual latent of each modality that the model has.
        noise_shape: (c, s, s) of the KL-VAE latents that it denoises.
        frames: F, number of frames of a clip.
        classes: number of classes; one more embedding stands for an unknown class.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        shapes: Mapping[Modality, Shape],
        noise_shape: Shape,
        frames: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.config, self.classes, unet = config, classes, config.decoder
        widths = [unet.width * multiplier for multiplier in unet.multipliers]
        self.process = Diffusion(NOISE)
        self._predict = predict_inside if unet.features == "inside" else predict_skips
        self.unets, self.class_embeddings = nn.ModuleDict(), nn.ModuleDict()
        for name in ("shared",) if config.shared_decoder else shapes:
            self.unets[name] = build_unet(config, widths, noise_shape)
            if config.semantics and (classes or len(shapes) > 1):
                class_embedding = nn.Embedding(classes + 1, config.semantic_width)  # the last one: unknown
                nn.init.normal_(class_embedding.weight, std=0.02)
                self.class_embeddings[name] = class_embedding
        self.pyramids, self.contexts = nn.ModuleDict(), nn.ModuleDict()
        self.frame_embeddings, self.estimators = nn.ModuleDict(), nn.ModuleDict()
        lengths = {"audio": 1, "video": frames}
        for modality, shape in shapes.items():
            self.pyramids[modality] = FeaturePyramid(config, shape, noise_shape[1], lengths[modality])
            self.frame_embeddings[modality] = nn.Embedding(lengths[modality], unet.width)
            partner = shapes.get(OTHER[modality]) if config.semantics else None
            self.contexts[modality] = Context(math.prod(partner[1:]) if partner else 0, config.semantic_width)
            if unet.estimate:
                self.estimators[modality] = zeroed(nn.Conv2d(widths[0], noise_shape[0], 3, padding=1))

    def set_unets_aside(self) -> None:
        """Make the U-Nets a plain attribute, outside the module's parameters and state and what ``to`` casts."""
        self.__dict__["unets"] = dict(cast(nn.ModuleDict, self._modules.pop("unets")).items())

    def condition(
        self,
        modality: Modality,
        latent: Tensor,
        frames: Tensor,
        semantics: Tensor | None,
        labels: Tensor | None,
    ) -> Condition:
        """Return the condition of K pictures of each clip, clip by clip (N = B·K).

        Args:
            modality: of the pictures.
            latent: (B, C, h, w), the perceptual latent of this modality.
            frames: (B, K) int64, the frames' indices; zeros (B, 1) for the audio image.
            semantics: (B, T, D), the semantic tokens of the *other* modality; None if the model has none.
            labels: (B,) int64, the clips' classes, -1 for unknown; None: all unknown.
        """
        name = "shared" if self.config.shared_decoder else modality
        count = frames.shape[1]
        embedding = self.frame_embeddings[modality](frames).flatten(0, 1)  # (B·K, E)
        features, finest = self.pyramids[modality](latent, frames, embedding)
        content = embedding
        if self.config.pooled_latent:
            pooled = latent.mean(dim=(2, 3)).repeat_interleave(count, dim=0)  # (B·K, C)
            content = torch.cat([pooled, embedding], dim=1)
        none = embedding.new_empty(len(latent), 0, self.config.semantic_width)  # (B, 0, D)
        tokens = none if semantics is None else semantics
        if self.class_embeddings:
            tokens = torch.cat([tokens, self._class_token(name, labels, latent)], dim=1)  # (B, T + 1, D)
        context = self.contexts[modality](tokens.repeat_interleave(count, dim=0))  # (B·K, T + 2, D)
        estimate = self._estimate(modality, latent, frames, finest) if self.estimators else None
        return Condition(features, content, context, None, estimate, name)

    def drop(self, modality: Modality, condition: Condition, dropped: Tensor) -> Condition:
        """Return ``condition`` without what the pictures ``dropped`` show; only their class and frame index are kept.

        Features, pooled latent and estimate become zero, semantics and modality null tokens. In the public code it is
        the encoder's input that becomes zero, and so do the tokens.

        Args:
            modality: of the N pictures.
            condition: of :meth:`condition`, not joined with others: features (N, D, h, w), tokens (N, T, W).
            dropped: (N,) bool.
        """

        def without(values: Tensor) -> Tensor:
            return values.masked_fill(dropped.view(-1, *[1] * (values.ndim - 1)), 0)

        width = self.config.decoder.width  # of the frame's embedding; the pooled latent, if there is one, precedes it
        pooled, embedding = condition.content[:, :-width], condition.content[:, -width:]
        return replace(
            condition,
            features=[without(level) for level in condition.features],
            content=torch.cat([without(pooled), embedding], dim=1),
            tokens=self.contexts[modality](condition.tokens[:, :-1], dropped),
            estimate=None if condition.estimate is None else without(condition.estimate),
        )

    def null(self, modality: Modality, condition: Condition) -> Condition:
        """Return ``condition``, of pictures of ``modality``, with all of them dropped (:meth:`drop`).

        Classifier-free guidance extrapolates from the prediction under this condition.
        """
        return self.drop(modality, condition, torch.ones_like(condition.content[:, 0], dtype=torch.bool))

    def forward(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the noise predicted in ``noisy``, (N, c, s, s) float32.

        Args:
            noisy: (N, c, s, s), noisy KL-VAE latents.
            time: (N,) int64, their timesteps in 0..999.
            condition: of these N pictures.
        """
        unet = cast(UNet2DConditionModel, self.unets[condition.unet])
        inputs = UNetInputs(
            noisy.to(unet.dtype), time, condition.content, condition.tokens, condition.mask, condition.features
        )
        predicted = self._predict(unet, inputs).float()
        if condition.estimate is None:
            return predicted
        return predicted + self._implied_noise(noisy, time, condition.estimate)

    def _class_token(self, name: str, labels: Tensor | None, latent: Tensor) -> Tensor:
        """Return the class embeddings (B, 1, D) of ``labels``, for the clips of ``latent`` (B, C, h, w)."""
        if labels is None:
            labels = torch.full((len(latent),), -1, device=latent.device)
        rows = torch.where(labels < 0, self.classes, labels)
        return self.class_embeddings[name](rows)[:, None]  # (B, D) -> (B, 1, D)

    def _estimate(self, modality: Modality, latent: Tensor, frames: Tensor, finest: Tensor) -> Tensor:
        """Return the clean latents (B·K, c, s, s) as estimated from the features ``finest`` (B·K, D, s, s).

        With ``config.shortcut`` the perceptual latent's own folded content is added (the encoders' shortcut, inverted).
        """
        estimate: Tensor = self.estimators[modality](finest)  # (B·K, c, s, s)
        if not self.config.shortcut:
            return estimate
        channels, total = estimate.shape[1], cast(FeaturePyramid, self.pyramids[modality]).frames
        clips = unfold(latent, finest.shape[-1] // latent.shape[-1], channels, total)  # (B, F, c, s, s)
        unfolded = clips[torch.arange(len(clips), device=frames.device)[:, None], frames]  # (B, K, c, s, s)
        return unfolded.flatten(0, 1) + estimate

    def _implied_noise(self, noisy: Tensor, time: Tensor, estimate: Tensor) -> Tensor:
        """Return the expected noise (N, c, s, s) in ``noisy`` if ``estimate`` is the clean latent up to an error.

        With z^t = √ᾱ z + √(1 − ᾱ) n and z = ``estimate`` + e, n and e Gaussian and independent, E[n | z^t] is the
        remainder z^t − √ᾱ · ``estimate`` times √(1 − ᾱ) / (1 − ᾱ + ᾱ · var e), var e = ESTIMATE_VARIANCE.
        """
        alpha_bar = self.process.alpha_bar(time).view(-1, 1, 1, 1)  # (N,) -> (N, 1, 1, 1)
        weight = (1 - alpha_bar).sqrt() / (1 - alpha_bar + alpha_bar * ESTIMATE_VARIANCE)
        return weight * (noisy.float() - alpha_bar.sqrt() * estimate.float())
