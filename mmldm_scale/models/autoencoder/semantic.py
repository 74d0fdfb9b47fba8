"""The semantic space that audio and video share: projectors into it, and the heads of its losses (section 3.1).

A projector turns a modality's perceptual latent into tokens, which the decoder of the *other* modality reads in its
cross-attention. The heads serve the losses (Eq. 3): one predicts a class from the tokens of both modalities, the other
one vector from the tokens of each modality, which is drawn to its partner's and away from all others (Eq. 1). The
classification head also chooses the class embedding when clips are decoded.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.modalities import MODALITIES, Modality, by_modality
from mmldm_scale.models.autoencoder.blocks import residual_block

INITIAL_TEMPERATURE, MAXIMAL_TEMPERATURE = 1 / 0.07, 100.0  # factors of similarities; CLIP's (arXiv 2103.00020)


@dataclass(frozen=True)
class Semantics:
    """Semantic tokens of clips: ``audio`` (B, T_a, D) and ``video`` (B, T_v, D), in raster order of the latents.

    None stands for a modality that the model does not have.
    """

    audio: Tensor | None = None
    video: Tensor | None = None

    @property
    def present(self) -> dict[Modality, Tensor]:
        """The tokens by modality, without the missing one."""
        return by_modality(self.audio, self.video)


class Projector(nn.Module):
    """Perceptual latent (B, C, h, w) → semantic tokens (B, h·w, ``width``), in raster order."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.block = residual_block(width, width)
        self.position = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the semantic tokens (B, h·w, width) of ``latent`` (B, C, h, w)."""
        features = self.block(self.stem(latent), None)  # (B, D, h, w)
        return self.norm(features.flatten(2).transpose(1, 2) + self.position)  # (B, h·w, D)


class ClassificationHead(nn.Module):
    """Semantic tokens of both modalities, or of the only one → logits of the clip's class."""

    def __init__(self, width: int, classes: int, modalities: int = len(MODALITIES)) -> None:
        super().__init__()
        self.hidden = nn.Linear(modalities * width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, semantics: Semantics) -> Tensor:
        """Return the logits (B, classes), float32, of ``semantics``, tokens (B, T_a, D) and (B, T_v, D)."""
        pooled = torch.cat([tokens.mean(dim=1) for tokens in semantics.present.values()], dim=1)  # (B, 2·D or D)
        return self.out(F.gelu(self.hidden(pooled))).float()


class ContrastiveHead(nn.Module):
    """f_co of Eq. 1 and its τ. Both modalities share it, as their tokens are in one space."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, outputs, bias=False)
        self.temperature = Temperature()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector of length 1 for each clip's ``tokens`` (B, T, D): (B, outputs), float32."""
        return F.normalize(self.out(tokens.mean(dim=1)).float(), dim=1)


class Temperature(nn.Module):
    """The learned τ by which the similarities of Eq. 1 are multiplied. The parameter is its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        # (1,) and not (): engines that broadcast or shard parameters cannot take a scalar
        self.log = nn.Parameter(torch.tensor([math.log(INITIAL_TEMPERATURE)]))

    def forward(self) -> Tensor:
        """Return τ, a positive float32 scalar () of at most 100."""
        return self.log[0].float().exp().clamp(max=MAXIMAL_TEMPERATURE)
