"""Between latents z and noise n: how they are mixed, what a network learns of the mixture, and the way back.

    process = noise_process(config)                       # by config.prediction
    noisy = process.corrupt(clean, noise, time)
    target, weight = process.target(clean, noise, time), process.weight(time)
    for time in process.timesteps(50).tolist():
        latents = process.step(network(latents, time), time, latents)

    prediction   mixture z^t            target           weight         step back
    epsilon      α_t z + σ_t n          n                1 or Min-SNR   DDIM
    v            α_t z + σ_t n          α_t n − σ_t z    1 or Min-SNR   DDIM
    flow         (1 − s_t) z + s_t n    n − z            1              Euler

α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t) are the schedule's. All three count time alike, in integers from 0, nearly clean, to
T − 1, nearly or wholly noise: that is what is drawn in training, given to the network, and visited in sampling.
"""

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler, stride, timesteps


class Diffusion:
    """Diffusion that preserves variance (Eq. 5), predicting the noise or v (Salimans & Ho, arXiv 2202.00512)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.scheduler: DDIMScheduler = scheduler(config)

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return z^t = α_t z + σ_t n for ``clean`` z and ``noise`` n (B, C, H, W) and timesteps ``time`` (B,)."""
        return self.scheduler.add_noise(clean, noise, time)

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the network is to predict, (B, C, H, W): n, or v = α_t n − σ_t z."""
        return noise if self.config.prediction == "epsilon" else self.scheduler.get_velocity(clean, noise, time)

    def weight(self, time: Tensor) -> Tensor:
        """Return how much a sample's squared error counts, (B,) float32: 1, or by Min-SNR (Hang et al. 2023).

        With SNR = ᾱ / (1 − ᾱ): min(SNR, γ) / SNR for ε and min(SNR, γ) / (SNR + 1) for v, both of which are
        min(SNR, γ) of the error in z. At SNR 0 the first is 1, and the second 0: nothing can be known of z there.
        """
        signal = self.scheduler.alphas_cumprod.to(time.device)[time]  # ᾱ_t
        if not self.config.min_snr:
            return torch.ones_like(signal)
        most = self.config.min_snr * (1 - signal)  # γ / (SNR + 1)
        if self.config.prediction == "epsilon":
            return (most / signal).clamp(max=1)
        return torch.minimum(signal, most)

    def timesteps(self, steps: int) -> Tensor:
        """Prepare for ``steps`` sampling steps, which must divide T; return their timesteps (steps,), noisiest first.

        Raises:
            UserError: they do not.
        """
        return timesteps(self.scheduler, steps)

    def step(self, predicted: Tensor, time: int, latents: Tensor) -> Tensor:
        """Return ``latents`` (B, C, H, W) of timestep ``time`` one step nearer to clean ones: DDIM with η = 0."""
        return self.scheduler.step(predicted, time, latents, eta=0.0).prev_sample


class RectifiedFlow:
    """Straight lines from latents to noise, with their velocity predicted (Liu et al., arXiv 2209.03003).

    Timestep t stands for the share s_t = (t + 1) / T of noise: 1 at the last, so that sampling begins with what
    training ended with, and 1/T at the first, from where the last of T steps goes to 0.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.length = config.steps
        self._stride = 1

    @property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The same for programs that know diffusers, whose timesteps are T · s, one more than ours."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.length)

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return z^t = (1 − s_t) z + s_t n for ``clean`` z and ``noise`` n (B, C, H, W), timesteps ``time`` (B,)."""
        share = ((time.to(clean.device) + 1) / self.length).view(-1, 1, 1, 1)
        return (1 - share) * clean + share * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the network is to predict at any ``time``: dz^t / ds = n − z, (B, C, H, W)."""
        return noise - clean

    def weight(self, time: Tensor) -> Tensor:
        """Return how much a sample's squared error counts, (B,) float32: 1."""
        return torch.ones_like(time, dtype=torch.float32)

    def timesteps(self, steps: int) -> Tensor:
        """As :meth:`Diffusion.timesteps`: those of s = 1, 1 − 1/steps, …, 1/steps."""
        self._stride = stride(self.length, steps)
        return torch.arange(self.length - 1, -1, -self._stride)

    def step(self, predicted: Tensor, time: int, latents: Tensor) -> Tensor:
        """Return ``latents`` (B, C, H, W) of timestep ``time`` one step nearer to clean ones: Euler's method."""
        return latents - self._stride / self.length * predicted


Process = Diffusion | RectifiedFlow


def noise_process(config: DiffusionConfig) -> Process:
    """Return the process that ``config.prediction`` names."""
    return RectifiedFlow(config) if config.prediction == "flow" else Diffusion(config)
