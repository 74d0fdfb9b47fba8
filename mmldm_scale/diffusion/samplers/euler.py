"""Euler's method along the velocity of a rectified flow (Liu et al., arXiv 2209.03003, Algorithm 1), of first order."""

from torch import Tensor

from mmldm_scale.diffusion.noise_process import RectifiedFlow
from mmldm_scale.diffusion.samplers.contract import Predict, even_intervals


def euler(predict: Predict, noise: Tensor, process: RectifiedFlow, steps: int) -> Tensor:
    """Return the latents (B, ...) that ``noise`` (B, ...) leads to; see :mod:`.contract`."""
    latents = noise
    for time, end in even_intervals(process.length, steps):
        latents = latents - (time - end) / process.length * predict(latents, time)
    return latents
