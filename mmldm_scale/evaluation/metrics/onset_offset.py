"""Lag between the sound's onsets and the picture's motion, in ms."""

import math

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.evaluation.metrics.motion import check_clip, flow_magnitude, require_packages
from mmldm_scale.media.pixels import to_frames

SAMPLE_RATE, HOP = 22050, 220  # Hz; samples between two values of the onset strength, 10 ms
FARTHEST = 0.5  # seconds: the largest lag that is looked for
LEAST_SHARE = 0.5  # of the steps from frame to frame that must have sound at a lag
FLAT = 1e-9  # standard deviation below which motion or onset strength is constant


def onset_lag(frames: np.ndarray, frame_rate: float, waveform: np.ndarray, sample_rate: int) -> float:
    """Return by how many ms the sound comes after the picture, -500 to 500; NaN if picture or sound does not change.

    It is the lag, in steps of 10 ms, at which the motion from frame to frame (mean length of the Farneback flow)
    correlates most with librosa's onset strength, averaged over the same times. Of equal lags the smallest is taken.
    The lag of one short clip can be wrong by a period of whatever repeats in it: 1.6 s have 15 steps at 10 frames/s.

    Args:
        frames: (F, H, W, 3) uint8 RGB, at least three; frame i is the picture in the middle of its time.
        frame_rate: frames per second.
        waveform: (N,) float32 mono in [-1, 1].
        sample_rate: Hz.

    Raises:
        UserError: too few or too small frames, or no sound.
    """
    check_clip("onset_offset", frames, waveform)
    motion = flow_magnitude(frames)  # (F - 1,)
    strength = _onset_strength(waveform, sample_rate)
    sums = np.concatenate([[0.0], np.cumsum(strength)])
    steps = np.arange(1, len(frames))  # from frame i - 1 to i: from (i - 0.5) / rate to (i + 0.5) / rate
    best, best_lag = -math.inf, math.nan
    for lag in sorted(np.arange(-FARTHEST, FARTHEST + 0.005, HOP / SAMPLE_RATE), key=abs):
        first, last = (_index((steps + half) / frame_rate + lag) for half in (-0.5, 0.5))
        heard = (first >= 0) & (last < len(sums)) & (last > first)
        if heard.sum() < max(3, LEAST_SHARE * len(steps)):
            continue
        sound = (sums[last[heard]] - sums[first[heard]]) / (last - first)[heard]
        if motion[heard].std() > FLAT and sound.std() > FLAT:
            correlation = float(np.corrcoef(motion[heard], sound)[0, 1])
            if correlation > best + FLAT:
                best, best_lag = correlation, float(lag)
    return 1000 * best_lag


def _onset_strength(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    import librosa  # of an extra, and slow to import

    sound = librosa.resample(waveform.astype(np.float32), orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    strength: np.ndarray = librosa.onset.onset_strength(y=sound, sr=SAMPLE_RATE, hop_length=HOP)
    return strength.astype(np.float64)


def _index(seconds: np.ndarray) -> np.ndarray:
    return np.round(seconds * SAMPLE_RATE / HOP).astype(int)


class OnsetOffset(ClipMetric):
    """Mean over clips of the size of :func:`onset_lag`; a clip that has no lag counts as one of 500 ms."""

    name = "onset_offset"
    unit = "ms"
    direction = "lower"
    needs = ("frames", "waveform")
    reference = "none"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        require_packages(self.name)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        media = self.context.media
        sounds = batch.samples["waveform"].float().cpu().numpy()
        pairs = zip(to_frames(batch.samples["frames"]).cpu().numpy(), sounds, strict=True)
        lags = [onset_lag(frames, media.fps, sound, media.audio.sample_rate) for frames, sound in pairs]
        return torch.tensor([1000 * FARTHEST if math.isnan(lag) else abs(lag) for lag in lags], dtype=torch.float64)
