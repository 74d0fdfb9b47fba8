"""From noise to KL-VAE latents with the signal decoder, told by conditions what to draw."""

import torch
from torch import Tensor

from mmldm_scale.config import DecodingConfig, DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler, timesteps
from mmldm_scale.models.autoencoder.decoder import Condition, SignalDecoder


def denoise(
    decoder: SignalDecoder,
    noise: Tensor,
    condition: Condition,
    null: Condition | None,
    decoding: DecodingConfig,
    guidance: Tensor,
) -> Tensor:
    """Draw N pictures' KL-VAE latents (N, c, s, s) float32 by DDIM (η = 0).

    Args:
        noise: (N, c, s, s) standard normal.
        condition: what the pictures show.
        null: the same without semantics and class; None: there is no guidance.
        guidance: (N,), each picture's guidance scale; 1: none.
    """
    rows = torch.arange(len(noise), device=noise.device).split(decoding.pictures or len(noise))
    if len(rows) > 1:
        parts = [
            denoise(decoder, noise[r], condition.select(r), null and null.select(r), decoding, guidance[r])
            for r in rows
        ]
        return torch.cat(parts)
    schedule = scheduler(DiffusionConfig())
    sample, scale = noise.float(), guidance.view(-1, 1, 1, 1)
    for time in timesteps(schedule, decoding.steps).to(noise.device):
        epsilon = decoder(sample, time.expand(len(sample)), condition)
        if null is not None:
            without = decoder(sample, time.expand(len(sample)), null)
            epsilon = without + scale * (epsilon - without)
        sample = schedule.step(epsilon, time, sample, eta=0.0, return_dict=False)[0]
    return sample
