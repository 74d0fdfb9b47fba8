"""Convert latents between the scale of the autoencoder and that of the DiT.

For the DiT, each channel has mean 0 and variance 1 over the training set. The statistics of a modality, {"mean": [C],
"std": [C]}, come from the manifest of the latent shards and are stored with the DiT's weights.
"""

import torch
from torch import Tensor

Statistics = dict[str, list[float]]

MIN_STD = 1e-5  # least standard deviation to divide by, so that the noise of a dead channel is not amplified


def normalise(latents: Tensor, statistics: Statistics) -> Tensor:
    """Return the autoencoder's ``latents`` (..., C, H, W) on the scale of the DiT, float32."""
    mean, std = _columns(statistics, latents)
    return (latents.float() - mean) / std


def restore(latents: Tensor, statistics: Statistics) -> Tensor:
    """Return the DiT's ``latents`` (..., C, H, W) on the scale of the autoencoder, float32."""
    mean, std = _columns(statistics, latents)
    return latents.float() * std + mean


def _columns(statistics: Statistics, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (C, 1, 1) each."""
    mean, std = (torch.tensor(statistics[name], device=like.device)[:, None, None] for name in ("mean", "std"))
    return mean, std.clamp_min(MIN_STD)
