"""Classifier-free guidance of both modalities from one forward pass: scales, where they apply, branches and weights.

A guided prediction is a weighted sum of those of up to three branches. "all" sees all conditions, "media" all but class
and text (the given modality and the previous clips), "nothing" sees none. With the scale φ of the modality and φ_c of
class and text it is InstructPix2Pix's (arXiv 2211.09800, Eq. 3):

    ε(nothing) + φ (ε(media) − ε(nothing)) + φ_c (ε(all) − ε(media))
    = φ_c ε(all) + (φ − φ_c) ε(media) + (1 − φ) ε(nothing)

With φ_c = φ it is the usual φ ε(all) − (φ − 1) ε(nothing). Eq. 9 prints (1 − φ) for (φ − 1), which for φ > 1 would add
the unconditional prediction. v and a flow's velocity are guided likewise, which is the same: at fixed
latents they are affine in ε, and the weights add up to 1. A branch whose weight is 0 is not computed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.diffusion.conditions import CONTEXT, null
from mmldm_scale.diffusion.network import Network

Weights = tuple[float, float, float]  # of the branches "all", "media", "nothing"
UNGUIDED: Weights = (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Guidance:
    """How strongly each condition acts.

    Attributes:
        scales: φ of each generated modality; 1 has no effect.
        context: φ_c of class and text; None: the modality's.
        interval: (low, high]; guidance applies where the share of the timestep in the process, from 0 (clean) to 1
            (noise), lies in it; elsewhere the branch "all" is the prediction (arXiv 2404.07724, Eq. 5).
    """

    scales: Mapping[str, float]
    context: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)

    def weights(self, share: float, modality: str, conditions: Iterable[str]) -> Weights:
        """Return the weights of the branches for ``modality`` at ``share`` of the process, given these conditions."""
        names = set(conditions)
        low, high = self.interval
        if not names or not low < share <= high:
            return UNGUIDED
        media = self.scales[modality]
        context = media if self.context is None else self.context
        if names.isdisjoint(CONTEXT):  # "media" is "all"
            context = media
        elif names.issubset(CONTEXT):  # "media" is "nothing"
            media = context
        return context, media - context, 1 - media


def guided_prediction(
    network: Network,
    latents: Mapping[Modality, Tensor],
    time: float,
    conditions: Mapping[str, Tensor],
    weights: Mapping[Modality, Weights],
) -> dict[Modality, Tensor]:
    """Return the guided prediction for each modality of ``weights``, (B, C, H, W) float32, from one forward pass.

    Args:
        latents: of the model's modalities at timestep ``time``, (B, C, H, W) each; a scheduler of diffusers may visit
            timesteps between whole ones.
        conditions: arguments of the network, of B samples each.
        weights: of the branches, by the modalities that are generated.
    """
    nothing = null(conditions)
    branches = (
        conditions,
        {name: (nothing if name in CONTEXT else conditions)[name] for name in conditions},
        nothing,
    )
    needed = [i for i in range(len(branches)) if any(weight[i] for weight in weights.values())]
    joined = {name: torch.cat([branches[i][name] for i in needed]) for name in conditions}
    repeated = {name: latent.repeat(len(needed), 1, 1, 1) for name, latent in latents.items()}
    first = next(iter(repeated.values()))
    times = torch.full((len(first),), time, device=first.device)
    predicted = by_modality(*network(*as_pair(repeated), times, **joined))
    guided: dict[Modality, Tensor] = {}
    for name, weight in weights.items():
        parts = predicted[name].float().chunk(len(needed))
        terms = [weight[i] * part for i, part in zip(needed, parts, strict=True)]
        guided[name] = sum(terms[1:], start=terms[0])
    return guided
