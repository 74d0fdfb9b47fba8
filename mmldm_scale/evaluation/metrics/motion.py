"""Motion of frames and onset strength of sound, for metrics of alignment; they need the extra ``evaluation``."""

import importlib
from itertools import pairwise
from types import ModuleType

import numpy as np

from mmldm_scale.common.errors import UserError

# OpenCV's Farneback flow as in AV-Align's code: pyramid scale and levels, window (pixels), iterations, neighbourhood
# (pixels) and its Gaussian's standard deviation, flags.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
SMALLEST_SIDE = 8  # pixels
PACKAGES = {"cv2": "opencv-python-headless", "librosa": "librosa"}  # by module


def require_packages(name: str) -> None:
    """Raise UserError if a package that the metric ``name`` needs is not installed."""
    for module in PACKAGES:
        _import(name, module)


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{name}: needs {PACKAGES[module]}: pip install 'mmldm_scale[evaluation]'") from None


def flow_magnitude(frames: np.ndarray) -> np.ndarray:
    """Return the mean length (pixels) of the Farneback flow from each frame to the next: (F - 1,) float64.

    Args:
        frames: (F, H, W, 3) uint8 RGB, F ≥ 2, of at least ``SMALLEST_SIDE`` pixels a side.
    """
    import cv2  # of an extra

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = np.zeros((*grey[0].shape, 2), np.float32)  # (H, W, 2), overwritten
    lengths = []
    for before, after in pairwise(grey):
        cv2.calcOpticalFlowFarneback(before, after, flow, *FARNEBACK)
        lengths.append(float(cv2.magnitude(flow[..., 0], flow[..., 1]).mean(dtype=np.float64)))
    return np.array(lengths)


def check_clip(name: str, frames: np.ndarray, waveform: np.ndarray) -> None:
    """Raise UserError if a clip cannot be measured; ``name`` is what the message begins with."""
    if len(frames) < 3:
        raise UserError(f"{name}: has {len(frames)} frames; alignment needs at least 3")
    if min(frames.shape[1:3]) < SMALLEST_SIDE:
        raise UserError(f"{name}: {min(frames.shape[1:3])} pixels; must be at least {SMALLEST_SIDE}")
    if not len(waveform):
        raise UserError(f"{name}: has no sound; alignment needs it")
