"""What extractors of frames do with a clip before their network sees it: choose frames, reduce, scale and crop them.

Resizing is done in float32 with torch's interpolation, in the same way on every CPU.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord


def take_frames(clip: ClipRecord, count: int | None, frame_rate: float | None, title: str) -> Tensor:
    """Return the first ``count`` frames of ``clip`` at ``frame_rate``, (count, 3, H, W) uint8.

    Args:
        clip: any clip with frames.
        count: number of frames; None for all.
        frame_rate: frames per second. Of a clip at another rate the frame shown at each time is taken, so frames are
            left out or repeated. None for the clip's own rate.
        title: who needs the frames, for messages.

    Raises:
        UserError: the clip has no frames, or is too short.
    """
    total = len(clip.clip.frames)
    if total == 0:
        raise UserError(f"{clip.name}: has no frames, which {title} needs")
    step = clip.frame_rate / frame_rate if frame_rate else 1.0  # of the clip's frames for one frame
    if count is None:
        count = math.ceil(total / step)
    positions = [math.floor(number * step) for number in range(count)]
    if positions[-1] >= total:
        at_rate = f" at {frame_rate:g} frames per second" if frame_rate else ""
        have = f"has {total} frames at {clip.frame_rate:g} frames per second"
        raise UserError(f"{clip.name}: is too short, {title} needs {count} frames{at_rate}, the clip {have}")
    return torch.from_numpy(np.ascontiguousarray(clip.clip.frames[positions])).permute(0, 3, 1, 2)


def letterbox(frames: Tensor, size: int, antialias: bool) -> Tensor:
    """Return ``frames`` scaled to fit a square, bicubically, with black bars on two sides; (F, 3, size, size) uint8.

    Args:
        frames: (F, 3, H, W) uint8.
        size: pixels of the square's side.
        antialias: filter before reducing.
    """
    height, width = frames.shape[-2:]
    ratio = min(size / height, size / width)
    inner = int(height * ratio), int(width * ratio)  # truncated, as MM-Diffusion does
    if inner != (height, width):
        scaled = F.interpolate(frames.float(), inner, mode="bicubic", align_corners=False, antialias=antialias)
        frames = scaled.clamp(0, 255).round().to(torch.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    return F.pad(frames, (left, size - inner[1] - left, top, size - inner[0] - top))


def scale_and_crop(frames: Tensor, size: int, antialias: bool) -> Tensor:
    """Return the middle square of ``frames`` with the shorter side scaled to ``size``, bilinearly; (F, 3, size, size).

    Args:
        frames: (F, 3, H, W) float32.
        size: pixels.
        antialias: filter before reducing.
    """
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    scaled_size = (size, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), size)
    if scaled_size != (height, width):
        frames = F.interpolate(frames, scaled_size, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = (scaled_size[0] - size) // 2, (scaled_size[1] - size) // 2
    return frames[..., top : top + size, left : left + size]
