"""How latents z and noise n are mixed at each timestep, and what a network learns to predict from the mixture.

    process = noise_process(config)                       # by config.prediction
    noisy = process.corrupt(clean, noise, time)
    target, weight = process.target(clean, noise, time), process.weight(time)

    prediction   mixture z^t            target           weight
    epsilon      α_t z + σ_t n          n                1 or Min-SNR
    v            α_t z + σ_t n          α_t n − σ_t z    1 or Min-SNR
    flow         (1 − s_t) z + s_t n    n − z            1

α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t) belong to the noise schedule. All three count time in integers from 0 (nearly clean) to
T − 1 (nearly or wholly noise); the same integers are drawn in training, given to the network and visited in sampling.

A process has no state: its methods are functions of their arguments and the configuration.
:mod:`~mmldm_scale.diffusion.samplers` leads from noise back to latents.
"""

from typing import ClassVar

import torch
from torch import Tensor

from mmldm_scale.config import DiffusionConfig


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Return ᾱ of the schedule of sections 3.2 and 4.1, (T,) float32: √β_t is linear from √beta_start to √beta_end.

    With ``zero_terminal_snr``, √ᾱ_t is shifted and scaled so that it is 0 at the last timestep and unchanged at the
    first (arXiv 2305.08891, Algorithm 1). The scheduler of :mod:`~mmldm_scale.diffusion.schedule` has the same numbers
    bit for bit, since diffusers computes them in this order.
    """
    betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps) ** 2  # (T,)
    if config.zero_terminal_snr:
        roots = (1 - betas).cumprod(0).sqrt()
        rescaled = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        betas = 1 - torch.cat([rescaled[:1], rescaled[1:] / rescaled[:-1]])
    return (1 - betas).cumprod(0)


class Diffusion:
    """Variance-preserving diffusion (Eq. 5), predicting the noise or v (Salimans & Ho, arXiv 2202.00512).

    Eq. 6 as printed lacks a square root: what is meant, and computed here, is the sample of Eq. 5,
    z^t = √ᾱ_t · z^0 + √(1 − ᾱ_t) · n^t.

    Attributes:
        length: T, the number of timesteps.
        alphas_cumprod: ᾱ of each timestep, (T,) float32, on the CPU.
    """

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "v")

    def __init__(self, config: DiffusionConfig) -> None:
        self.config, self.length = config, config.steps
        self.alphas_cumprod = alphas_cumprod(config)
        self._copies: dict[torch.device, Tensor] = {}  # of alphas_cumprod, so that a training step copies nothing

    def alpha_bar(self, time: Tensor) -> Tensor:
        """Return ᾱ_t in (0, 1) of timesteps ``time`` in [0, T), (B,) or (B, N): float32 of its shape and device."""
        if time.device not in self._copies:
            self._copies[time.device] = self.alphas_cumprod.to(time.device)
        return self._copies[time.device][time]

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return z^t = α_t z + σ_t n, (B, ...), for ``clean`` z and ``noise`` n (B, ...), ``time`` (B,) or (1,)."""
        alpha, sigma = self._factors(time, clean)
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the network learns to predict, (B, ...) like ``clean`` and ``noise``: n, or v = α_t n − σ_t z."""
        if self.config.prediction == "epsilon":
            return noise
        alpha, sigma = self._factors(time, clean)
        return alpha * noise - sigma * clean

    def weight(self, time: Tensor) -> Tensor:
        """Return the weights (B,) float32 of the squared errors at timesteps ``time`` (B,): 1, or by Min-SNR.

        By Min-SNR (arXiv 2303.09556), with SNR = ᾱ / (1 − ᾱ): min(SNR, γ) / SNR for ε and min(SNR, γ) / (SNR + 1)
        for v, both of which are min(SNR, γ) of the error in z. At SNR 0 the first is 1 and the second 0: z^t says
        nothing about z there.
        """
        signal = self.alpha_bar(time)
        if not self.config.min_snr:
            return torch.ones_like(signal)
        most = self.config.min_snr * (1 - signal)  # γ / (SNR + 1)
        if self.config.prediction == "epsilon":
            return (most / signal).clamp(max=1)
        return torch.minimum(signal, most)

    def clean_and_noise(self, predicted: Tensor, latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Return z and n, of which ``latents`` at timestep ``time`` consist if ``predicted`` is right; (B, ...) each.

        At a timestep of pure noise (``zero_terminal_snr``) only v determines z.
        """
        signal = self.alphas_cumprod[time]
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        if self.config.prediction == "epsilon":
            return (latents - sigma * predicted) / alpha, predicted
        return alpha * latents - sigma * predicted, alpha * predicted + sigma * latents

    def _factors(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return α_t and σ_t of ``time`` (B,), each (B, 1, …) with the dtype, device and dimensions of ``like``."""
        signal = self.alpha_bar(time.to(like.device)).to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        return signal**0.5, (1 - signal) ** 0.5


class RectifiedFlow:
    """Straight lines from latents to noise, predicting their velocity (Liu et al., arXiv 2209.03003).

    At timestep t the share of noise is s_t = (t + 1) / T: 1 at the last, so that sampling begins with what training
    ended with, and 1/T at the first, from which the last sampling step goes to 0.

    Attributes:
        length: T, the number of timesteps.
    """

    predictions: ClassVar[tuple[str, ...]] = ("flow",)

    def __init__(self, config: DiffusionConfig) -> None:
        self.config, self.length = config, config.steps

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return z^t = (1 − s_t) z + s_t n, (B, ...) like ``clean`` z and ``noise`` n, at ``time`` (B,) or (1,)."""
        share = ((time.to(clean.device) + 1) / self.length).view(-1, *[1] * (clean.ndim - 1))
        return (1 - share) * clean + share * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the network learns to predict at any ``time``: dz^t / ds = n − z, (B, ...)."""
        return noise - clean

    def weight(self, time: Tensor) -> Tensor:
        """Return the weights (B,) float32 of the squared errors at timesteps ``time`` (B,): 1 each."""
        return torch.ones_like(time, dtype=torch.float32)


class MeanFlow(RectifiedFlow):
    """A rectified flow whose network also predicts average velocities (:mod:`~mmldm_scale.diffusion.mean_flow`)."""

    predictions: ClassVar[tuple[str, ...]] = ("flow with mean_flow above 0",)


Process = Diffusion | RectifiedFlow


def noise_process(config: DiffusionConfig) -> Process:
    """Return the process that ``config.prediction`` and ``config.mean_flow`` name."""
    if config.prediction != "flow":
        return Diffusion(config)
    return MeanFlow(config) if config.mean_flow else RectifiedFlow(config)
