"""From noise to KL-VAE latents with the signal decoder and a sampler of :mod:`mmldm_scale.diffusion.samplers`.

:func:`denoise` draws any number of pictures, in groups that fit into memory. Each picture is a function of its own
noise and condition, whichever others it is drawn with, up to rounding.
"""

from typing import Protocol

import torch
from torch import Tensor

from mmldm_scale.config import DecodingConfig
from mmldm_scale.diffusion.noise_process import Process, noise_process
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.models.autoencoder.decoder import NOISE, Condition
from mmldm_scale.models.autoencoder.distillation import Distillation


class Decoder(Protocol):
    """What draws pictures: :class:`~mmldm_scale.models.autoencoder.decoder.SignalDecoder`."""

    @property
    def process(self) -> Process:
        """The noise process that it was trained with."""

    def __call__(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the noise predicted in ``noisy`` (N, c, s, s) at ``time`` (N,), float32."""


def check_decoding(
    decoding: DecodingConfig, distillation: Distillation | None = None, prefix: str = "decoding."
) -> None:
    """Raise UserError if the sampler is unknown or cannot take the steps; messages name the key {prefix}steps.

    Args:
        distillation: how the signal decoder was distilled, which then must allow ``decoding``; None: it was not, or it
            is not known.
    """
    if distillation is not None:
        distillation.check(decoding, prefix)
    get_sampler(decoding.sampler, noise_process(NOISE), decoding.steps, prefix)


def denoise(
    decoder: Decoder,
    noise: Tensor,
    condition: Condition,
    null: Condition | None,
    decoding: DecodingConfig,
    guidance: Tensor,
) -> Tensor:
    """Draw N pictures' KL-VAE latents (N, c, s, s) float32.

    At most ``decoding.pictures`` go through the U-Net together; where some are guided, each counts for two.

    Args:
        noise: (N, c, s, s) standard normal.
        condition: what the pictures show.
        null: the same, of which only class and frame index are known; None: there is no guidance.
        guidance: (N,), each picture's guidance scale φ: φ · ε(condition) − (φ − 1) · ε(null). At 1 there is none.

    Raises:
        UserError: the sampler is unknown or cannot take the steps.
    """
    guided = torch.zeros_like(guidance, dtype=torch.bool) if null is None else guidance > 1
    together = decoding.pictures or 2 * len(noise)
    groups = torch.arange(len(noise), device=noise.device).split(max(1, together // (1 + bool(guided.any()))))
    parts = []
    for rows in groups:
        guided_rows = guided[rows].nonzero().flatten()  # the pictures that are also drawn from the null condition
        joined = condition.select(rows) if len(groups) > 1 else condition
        if null is not None and len(guided_rows):
            joined = Condition.join([joined, null.select(rows[guided_rows])])
        parts.append(_draw(decoder, noise[rows], joined, guided_rows, decoding, guidance[rows[guided_rows]]))
    return torch.cat(parts)


def _draw(
    decoder: Decoder,
    noise: Tensor,
    condition: Condition,
    guided_rows: Tensor,
    decoding: DecodingConfig,
    guidance: Tensor,
) -> Tensor:
    """Draw N pictures at once.

    Args:
        condition: of the N pictures, then the null condition of the G guided ones.
        guided_rows: (G,) int64, which of the N pictures are guided.
        guidance: (G,), their guidance scales.
    """
    scale = guidance.view(-1, 1, 1, 1)

    def predict(latents: Tensor, time: int) -> Tensor:
        noisy = torch.cat([latents, latents[guided_rows]])  # (N + G, c, s, s)
        times = torch.full((len(noisy),), time, device=noisy.device)
        epsilon, null = decoder(noisy, times, condition).split([len(latents), len(guided_rows)])
        epsilon[guided_rows] = scale * epsilon[guided_rows] - (scale - 1) * null
        return epsilon

    sample = get_sampler(decoding.sampler, decoder.process, decoding.steps, "decoding.")
    return sample(predict, noise.float(), decoder.process, decoding.steps)
