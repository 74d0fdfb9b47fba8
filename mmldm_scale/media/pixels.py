"""Conversion of pictures between uint8, as decoded and written, and floats in [-1, 1], as models use them."""

from collections.abc import Sequence

import numpy as np
import torch


def to_signal(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return uint8 frames (..., H, W, 3) as float32 (..., 3, H, W) in [-1, 1]."""
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    return frames.movedim(-1, -3).float().div(127.5).sub(1.0)  # (..., H, W, 3) -> (..., 3, H, W)


def to_frames(signal: torch.Tensor) -> torch.Tensor:
    """Return a signal (..., 3, H, W) as uint8 frames (..., H, W, 3); values outside [-1, 1] are clipped."""
    levels = signal.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()  # (..., 3, H, W) -> (..., H, W, 3)


def strips(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``rows`` of N pictures each, (N, 3, S, S) in [-1, 1], as one picture (3, rows·S, N·S) in [0, 1]."""
    lines = [torch.cat(list(row), dim=2) for row in rows]  # each (3, S, N·S)
    return torch.cat(lines, dim=1).float().add(1).div(2).clamp(0, 1).cpu()
