"""DDIM with η = 0 (Song et al., arXiv 2010.02502, Eq. 12): deterministic, of first order."""

import torch
from torch import Tensor

from mmldm_scale.diffusion.noise_process import Diffusion
from mmldm_scale.diffusion.samplers.contract import CLEAN, Predict, even_intervals


def ddim(predict: Predict, noise: Tensor, process: Diffusion, steps: int) -> Tensor:
    """Return the latents (B, ...) that ``noise`` (B, ...) leads to; see :mod:`.contract`.

    Each step mixes the clean latents and the noise that were predicted anew, for the timestep where the step ends.
    """
    latents = noise
    for time, end in even_intervals(process.length, steps):
        clean, remaining_noise = process.clean_and_noise(predict(latents, time), latents, time)
        signal = torch.tensor(1.0) if end == CLEAN else process.alphas_cumprod[end]  # ᾱ
        latents = signal**0.5 * clean + (1 - signal) ** 0.5 * remaining_noise
    return latents
