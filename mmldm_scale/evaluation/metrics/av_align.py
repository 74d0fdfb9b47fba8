"""AV-Align (Yariv et al., "Diverse and Aligned Audio-to-Video Generation via Text-to-Video Model Adaptation", 2023)."""

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.evaluation.metrics.motion import check_clip, flow_magnitude, require_packages
from mmldm_scale.media.pixels import to_frames

SAMPLE_RATE = 22050  # Hz: librosa's default, at which the published code loads sound
Times = np.ndarray  # (n,) float64, seconds, ascending


def av_align(frames: np.ndarray, frame_rate: float, waveform: np.ndarray, sample_rate: int) -> float:
    """Return AV-Align of a clip: the share of peaks of motion and onsets of sound that meet, 0 to 1.

    As the published code (``av_align.py`` of TempoTokens) does:

    - motion is the mean length of OpenCV's Farneback flow between grey frames, with scale 0.5, 3 levels, window 15,
      3 iterations, neighbourhood 5 and 1.2; the flow from frame i - 1 to i counts at i / ``frame_rate``;
    - each strict local maximum of it is a peak, however small;
    - onsets are those of ``librosa.onset.onset_detect`` with its defaults, of sound at 22,050 Hz;
    - an onset meets a peak if they are less than one frame apart; several onsets may meet the same peak;
    - the result is met / (onsets + peaks - met).

    A clip without onsets and peaks, for which the published code divides by zero, has 0. The value depends on size and
    rate of the frames; the published code takes each video's own.

    Args:
        frames: (F, H, W, 3) uint8 RGB, at least three.
        frame_rate: frames per second.
        waveform: (N,) float32 mono in [-1, 1].
        sample_rate: Hz.

    Raises:
        UserError: too few or too small frames, or no sound.
    """
    check_clip("av_align", frames, waveform)
    return intersection_over_union(motion_peaks(frames, frame_rate), onsets(waveform, sample_rate), 1 / frame_rate)


def motion_peaks(frames: np.ndarray, frame_rate: float) -> Times:
    """Return when the motion of (F, H, W, 3) uint8 frames has a local maximum."""
    flow = flow_magnitude(frames)
    motion = np.concatenate([flow[:1], flow])  # (F,): the published code repeats the first
    inner = motion[1:-1]
    return (np.flatnonzero((inner > motion[:-2]) & (inner > motion[2:])) + 1) / frame_rate


def onsets(waveform: np.ndarray, sample_rate: int) -> Times:
    """Return when the (N,) waveform has an onset."""
    import librosa  # of an extra, and slow to import

    sound = librosa.resample(waveform.astype(np.float32), orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    strength = librosa.onset.onset_strength(y=sound, sr=SAMPLE_RATE)
    found: Times = librosa.onset.onset_detect(onset_envelope=strength, sr=SAMPLE_RATE, units="time")
    return found


def intersection_over_union(peaks: Times, heard: Times, tolerance: float) -> float:
    """Return the share of ``peaks`` and ``heard`` that meet, less than ``tolerance`` seconds apart; 0 without any."""
    met = int((np.abs(heard[:, None] - peaks) < tolerance).any(axis=1).sum())
    union = len(heard) + len(peaks) - met
    return met / union if union else 0.0


class AVAlign(ClipMetric):
    """AV-Align, the mean over clips; see :func:`av_align`."""

    name = "av_align"
    unit = ""
    direction = "higher"
    needs = ("frames", "waveform")
    reference = "none"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        require_packages(self.name)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        media = self.context.media
        sounds = batch.samples["waveform"].float().cpu().numpy()
        pairs = zip(to_frames(batch.samples["frames"]).cpu().numpy(), sounds, strict=True)
        return torch.tensor(
            [av_align(frames, media.fps, sound, media.audio.sample_rate) for frames, sound in pairs],
            dtype=torch.float64,
        )
