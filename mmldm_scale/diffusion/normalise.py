"""Latents between the two scales they live in: as the autoencoder makes them, and as the DiT sees them.

The DiT sees each channel with mean 0 and variance 1 over its training set. A modality's statistics, {"mean": [C],
"std": [C]}, come from the manifest of the latent shards and travel with the DiT's weights.
"""

import torch
from torch import Tensor

Statistics = dict[str, list[float]]

SMALLEST = 1e-5  # a channel that varies less is dead; its noise is not blown up further than this


def normalise(latents: Tensor, statistics: Statistics) -> Tensor:
    """Return the autoencoder's ``latents`` (..., C, H, W) as the DiT sees them, float32."""
    mean, std = _columns(statistics, latents)
    return (latents.float() - mean) / std


def restore(latents: Tensor, statistics: Statistics) -> Tensor:
    """Return ``latents`` (..., C, H, W) of the DiT as the autoencoder knows them, float32."""
    mean, std = _columns(statistics, latents)
    return latents.float() * std + mean


def _columns(statistics: Statistics, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (C, 1, 1) each."""
    mean, std = (torch.tensor(statistics[name], device=like.device)[:, None, None] for name in ("mean", "std"))
    return mean, std.clamp_min(SMALLEST)
