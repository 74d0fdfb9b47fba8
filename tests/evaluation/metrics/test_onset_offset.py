"""The lag between motion and onsets follows a shift of the sound, of made clips and of real ones."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.evaluation.metrics import METRICS
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.evaluation.metrics.onset_offset import onset_lag
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.decode import read_clips
from mmldm_scale.media.pixels import to_signal
from tests.support.datasets.jumps_and_beeps import RATE, TIMES, beeps, jumps

torch = pytest.importorskip("torch")
pytest.importorskip("cv2", reason="needs the extra evaluation")
pytest.importorskip("librosa", reason="needs the extra evaluation")

MEDIA = MediaConfig(frames=40, fps=10.0, size=32, audio=AudioImageConfig(sample_rate=RATE))


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.0, 0.1, 0.2, 0.4])
def test_the_lag_is_the_shift(shift):
    lag = onset_lag(jumps(TIMES), 10.0, beeps(TIMES + shift), RATE)
    assert lag == pytest.approx(1000 * shift, abs=60)  # a jump is seen within 100 ms


def test_what_does_not_change_has_no_lag():
    silent, still = np.zeros(4 * RATE, np.float32), np.full_like(jumps(TIMES), 90)
    assert math.isnan(onset_lag(jumps(TIMES), 10.0, silent, RATE))
    assert math.isnan(onset_lag(still, 10.0, beeps(TIMES), RATE))
    frames = torch.stack([to_signal(jumps(TIMES)), to_signal(still)])
    sounds = torch.from_numpy(np.stack([beeps(TIMES - 0.2), beeps(TIMES)]))
    metric = METRICS["onset_offset"](MetricContext(MEDIA))
    values = metric.by_clip(metric.measure(MetricBatch([0, 1], {"frames": frames, "waveform": sounds})))
    assert values[0] == pytest.approx(200, abs=60)
    assert values[1] == 500


@pytest.mark.skipif("MMLDM_TEST_MEDIA" not in os.environ, reason="MMLDM_TEST_MEDIA names no folder of real videos")
@pytest.mark.parametrize("name", ["avsync0.mp4", "landscape_reel.mp4"])
def test_the_lag_of_real_clips_follows_a_shift(name):
    path = Path(os.environ["MMLDM_TEST_MEDIA"]) / name
    (clip,) = read_clips(path, [0.0], MediaConfig(40, 10.0, 128, audio=AudioImageConfig(sample_rate=RATE)))
    assert isinstance(clip, Clip)
    lags = []
    for shift in (0.04, 0.1, 0.2):
        late = np.concatenate([np.zeros(round(shift * RATE), np.float32), clip.waveform])[: len(clip.waveform)]
        lags.append(onset_lag(clip.frames, 10.0, late, RATE))
    assert lags[1] - lags[0] == pytest.approx(60, abs=30)
    assert lags[2] - lags[1] == pytest.approx(100, abs=30)
