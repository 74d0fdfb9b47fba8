"""Random pictures and sounds for metrics, as tensors."""

import torch
from torch import Tensor


def pictures(seed: int = 0, size: int = 24, clips: int = 2) -> Tensor:
    """Return (clips, 3, 3, size, size) in [-1, 1]: three random pictures a clip."""
    return torch.rand(clips, 3, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sounds(seed: int = 0, samples: int = 4000, clips: int = 2) -> Tensor:
    """Return (clips, samples) in [-1, 1]: a tone of its own for each clip, with a little noise."""
    tones = torch.sin(torch.arange(samples) * torch.linspace(0.05, 0.21, clips)[:, None])
    return 0.5 * tones + 0.01 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


def noisy(clean: Tensor, level: float) -> Tensor:
    """Return ``clean`` with Gaussian noise of standard deviation ``level``."""
    return clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
