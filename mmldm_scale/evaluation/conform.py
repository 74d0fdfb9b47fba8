"""Brings clips into the form that a protocol asks for, before any network sees them."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.protocols.protocol import FramesConfig, SoundConfig
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.lossy_track import through_aac

LOSSY_KINDS = ("videos",)  # kinds of clip sets whose sound has a lossy track already
TOLERANCE = 0.05  # seconds of sound that may be missing at the end of a clip, and are silence then


def conform(record: ClipRecord, frames: FramesConfig | None, sound: SoundConfig | None, kind: str) -> ClipRecord:
    """Return ``record`` as a protocol asks for it; a signal whose argument is None is not needed, and left out.

    Args:
        kind: of its clip set.

    Raises:
        UserError: the clip lacks a signal, or is too short. The message begins with its name.
    """
    picked, frame_rate = (NO_FRAMES, 0.0) if frames is None else _frames(record, frames)
    waveform = NO_SOUND if sound is None else _sound(record, sound, kind)
    rate = record.sample_rate if len(waveform) else 0
    return ClipRecord(record.name, Clip(picked, waveform), frame_rate, rate, record.info)


def _frames(record: ClipRecord, config: FramesConfig) -> tuple[np.ndarray, float]:
    """Return the frames, (F, H, W, 3) uint8, and their rate."""
    frames = record.clip.frames
    if not len(frames):
        raise UserError(f"{record.name}: has no frames")
    rate = config.rate or record.frame_rate
    step = record.frame_rate / rate if rate else 1.0  # frames of the clip to one that is picked
    available = math.floor((len(frames) - 1) / step + 1e-6) + 1
    count = config.count or available
    if count > available:
        at_rate = f" at {config.rate:g} frames/s" if config.rate else ""
        raise UserError(f"{record.name}: has {available} frames{at_rate}; the protocol needs {count}")
    picked = frames[[math.floor(i * step + 1e-6) for i in range(count)]]
    return (_squares(picked, config) if config.size else picked), rate


def _squares(frames: np.ndarray, config: FramesConfig) -> np.ndarray:
    """Return ``frames``, (F, H, W, 3) uint8, as squares of ``config.size`` pixels; sides are truncated, not rounded."""
    height, width = frames.shape[1:3]
    sides = min(height, width) if config.fit == "crop" else max(height, width)
    inner = tuple(max(1, side * config.size // sides) for side in (height, width))
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (F, 3, H, W)
    if inner != (height, width):
        resized = interpolate(
            pixels.float(), inner, mode=config.filter, align_corners=False, antialias=config.antialias
        )
        pixels = resized.clamp(0, 255).round().to(torch.uint8)
    square: np.ndarray = _centred(pixels, config.size).permute(0, 2, 3, 1).contiguous().numpy()
    return square


def _centred(pixels: Tensor, size: int) -> Tensor:
    """Return ``pixels`` (F, 3, h, w) in the middle of black squares, or the middle of them; (F, 3, size, size)."""
    height, width = pixels.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2  # below 0: cut
    return pad(pixels, (left, size - width - left, top, size - height - top))


def _sound(record: ClipRecord, config: SoundConfig, kind: str) -> np.ndarray:
    """Return the waveform, (N,) float32, at the clip's own rate."""
    waveform, rate = record.clip.waveform, record.sample_rate
    if not len(waveform):
        raise UserError(f"{record.name}: has no sound")
    if config.track == "aac" and kind not in LOSSY_KINDS:
        try:
            waveform = through_aac(waveform, rate)
        except ValueError as error:
            raise UserError(f"{record.name}: cannot have the lossy track of the protocol: {error}") from None
    if not config.seconds:
        return waveform
    samples = round(config.seconds * rate)
    missing = samples - len(waveform)
    if missing > TOLERANCE * rate:
        seconds = len(waveform) / rate
        raise UserError(f"{record.name}: has {seconds:.2f} s of sound; the protocol needs {config.seconds:g} s")
    return np.pad(waveform[:samples], (0, max(0, missing)))
