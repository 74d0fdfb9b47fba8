"""What a perfectly trained network predicts where all latents are N(MEAN, spread²), from the definitions in float64.

Where the latents are Gaussian, prediction and sampling have closed forms, against which samplers are tested.
``settings`` are those of :class:`DiffusionConfig` that differ from its defaults: "prediction" and "zero_terminal_snr".
"""

import numpy as np
import torch
from torch import Tensor

MEAN, STD = 1.5, 0.3
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2)  # ᾱ of the default schedule
PREDICTIONS: dict[str, dict] = {
    "epsilon": {},
    "v": {"prediction": "v"},
    "v from pure noise": {"prediction": "v", "zero_terminal_snr": True},
    "flow": {"prediction": "flow"},
}


def mixture(settings: dict, time: int) -> tuple[float, float]:
    """Return the factors of latents and noise at ``time``; before the first timestep there is no noise."""
    if time < 0:
        return 1.0, 0.0
    if settings.get("prediction") == "flow":
        return 1 - (time + 1) / 1000, (time + 1) / 1000
    root = np.sqrt(ALPHAS)
    if "zero_terminal_snr" in settings:  # Algorithm 1 of arXiv 2305.08891
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root[time], np.sqrt(1 - root[time] ** 2)


def posterior_means(z, settings: dict, time: int, spread: float):
    """Return E[latents | z^t = z] and E[noise | z^t = z]."""
    alpha, sigma = mixture(settings, time)
    deviation = (z - alpha * MEAN) / (alpha**2 * spread**2 + sigma**2)
    return MEAN + alpha * spread**2 * deviation, sigma * deviation


def predict(z: Tensor, settings: dict, time: int, spread: float) -> Tensor:
    """Return the prediction that ``settings`` name for latents ``z`` at ``time``, float64."""
    latents, noise = posterior_means(z.double(), settings, time, spread)
    alpha, sigma = mixture(settings, time)
    prediction = settings.get("prediction", "epsilon")
    return {"epsilon": noise, "v": alpha * noise - sigma * latents, "flow": noise - latents}[prediction]


def flow(start: Tensor, settings: dict, spread: float, end: int = -1) -> Tensor:
    """Return where the probability flow leads ``start`` at timestep 999, or the expected latents at timestep ``end``.

    The flow keeps the number of standard deviations from the mean.
    """
    alpha, sigma = mixture(settings, 999)
    deviations = (start.double() - alpha * MEAN) / np.hypot(alpha * spread, sigma)
    alpha, sigma = mixture(settings, end)
    at_end = alpha * MEAN + np.hypot(alpha * spread, sigma) * deviations
    return at_end if end < 0 else torch.as_tensor(posterior_means(at_end, settings, end, spread)[0])
