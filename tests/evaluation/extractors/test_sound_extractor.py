"""What all extractors of sound share: resampling, the duration, and what they refuse. openWakeWord needs no file."""

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors import EXTRACTORS, extractor_class
from mmldm_scale.evaluation.extractors.audioclip import AudioClip
from mmldm_scale.evaluation.extractors.sound_extractor import SoundExtractor, resample
from tests.support.datasets.clip_records import of_frames, of_sound

CPU = torch.device("cpu")


class Listener(SoundExtractor):
    """The shared part alone."""

    name, title, dimension, weights, sample_rate, min_samples = "listener", "", 1, "", 16_000, 400
    has_own_weights = True

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, :1]


def sine(frequency: float, sample_rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * sample_rate)) / sample_rate)


def test_a_tone_keeps_its_time_and_level_and_what_cannot_be_heard_is_removed() -> None:
    inner = slice(800, -800)
    for frequency in (100, 1000, 7000):
        heard = resample(torch.from_numpy(sine(frequency, 44_100)).float(), 44_100, 16_000).numpy()
        np.testing.assert_allclose(heard[inner], sine(frequency, 16_000)[inner], atol=2e-4)
    gone = resample(torch.from_numpy(sine(12_000, 44_100)).float(), 44_100, 16_000).numpy()
    assert np.abs(gone[inner]).max() < 2e-4


def test_equal_rates_change_nothing() -> None:
    waveform = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert np.array_equal(Listener(None, CPU).prepare(of_sound(waveform, 16_000)), waveform)


@pytest.mark.parametrize(("seconds", "expected"), [(0.03, 480), (0.1, 1600)])
def test_a_clip_is_cut_or_padded_with_zeros(seconds, expected) -> None:
    waveform = np.linspace(0.1, 0.9, 800)
    prepared = Listener(None, CPU, seconds=seconds).prepare(of_sound(waveform, 16_000)).numpy()
    assert len(prepared) == expected
    np.testing.assert_array_equal(prepared[:800], waveform.astype(np.float32)[:expected])
    assert not prepared[800:].any()


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (of_frames(np.zeros((2, 8, 8, 3), np.uint8)), "clip: has no sound, which listener needs"),
        (of_sound(np.zeros(399), 16_000), "clip: has 0.025 s of sound; listener needs at least 0.025 s"),
        (of_sound(np.zeros(9999), 44_099), "clip: a sample rate of 44099 Hz cannot be resampled to 16000 Hz"),
    ],
)
def test_a_clip_that_cannot_be_heard_is_refused_by_name(clip, reason) -> None:
    with pytest.raises(UserError, match=reason):
        Listener(None, CPU).prepare(clip)


def test_weights_must_be_given() -> None:
    with pytest.raises(UserError, match="audioclip: needs pretrained weights; give their path as audioclip=PATH"):
        AudioClip(None, CPU)
    with pytest.raises(UserError, match="seconds is 0; must be a number above 0"):
        Listener(None, CPU, seconds=0)


@pytest.mark.parametrize("name", ["audioclip", "cnn14", "openwakeword", "vggish"])
def test_the_table_names_each_by_its_own_name(name) -> None:
    kind = extractor_class(name)
    assert name in EXTRACTORS
    assert kind.name == name
    assert kind.reads == "waveform"
