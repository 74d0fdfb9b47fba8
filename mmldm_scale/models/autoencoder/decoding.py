"""From noise to KL-VAE latents with the signal decoder, told by conditions what to draw.

:func:`denoise` draws any number of pictures, in groups that fit into memory, by DDIM or with a solver of second order.
Each picture is a function of its own noise and condition, whichever others it is drawn with, up to rounding.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from mmldm_scale.config import DecodingConfig, DiffusionConfig
from mmldm_scale.diffusion.schedule import Solver, scheduler, solver, timesteps
from mmldm_scale.models.autoencoder.decoder import Condition, SignalDecoder


def sampler(decoding: DecodingConfig) -> DDIMScheduler | Solver:
    """Return the sampler of ``decoding``, set to its steps. It keeps what it has seen: each use needs a new one.

    Raises:
        UserError: DDIM's steps do not divide the noise schedule's.
    """
    if decoding.sampler != "ddim":
        return solver(DiffusionConfig(), decoding.sampler, decoding.steps)
    schedule = scheduler(DiffusionConfig())
    timesteps(schedule, decoding.steps)
    return schedule


def denoise(
    decoder: SignalDecoder,
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
        null: the same without semantics and class; None: there is no guidance.
        guidance: (N,), each picture's guidance scale φ: φ · ε(condition) − (φ − 1) · ε(null). At 1 there is none.
    """
    guided = torch.zeros_like(guidance, dtype=torch.bool) if null is None else guidance > 1
    together = decoding.pictures or 2 * len(noise)
    rows = torch.arange(len(noise), device=noise.device).split(max(1, together // (1 + bool(guided.any()))))
    parts = []
    for r in rows:
        twice = guided[r].nonzero().flatten()  # which of them are also drawn from the null condition
        told = condition.select(r) if len(rows) > 1 else condition
        if len(twice):
            told = Condition.join([told, null.select(r[twice])])
        parts.append(_draw(decoder, noise[r], told, twice, decoding, guidance[r[twice]]))
    return torch.cat(parts)


def _draw(
    decoder: SignalDecoder, noise: Tensor, told: Condition, twice: Tensor, decoding: DecodingConfig, guidance: Tensor
) -> Tensor:
    """Draw N pictures at once; ``told`` is of these, then again of the G ``twice``, which have ``guidance`` (G,)."""
    schedule, sample = sampler(decoding), noise.float()
    scale = guidance.view(-1, 1, 1, 1)
    for time in schedule.timesteps.to(noise.device):
        noisy = torch.cat([sample, sample[twice]])
        epsilon, null = decoder(noisy, time.expand(len(noisy)), told).split([len(sample), len(twice)])
        epsilon[twice] = scale * epsilon[twice] - (scale - 1) * null
        sample = schedule.step(epsilon, time, sample, return_dict=False)[0]
    return sample
