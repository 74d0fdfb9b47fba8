"""Each measure of the sound, on signals whose answer is known."""

import numpy as np
import pytest
import torch
import torchaudio

from data_tools.filters import sound


def sine(level_db: float, seconds: float, rate: int, hertz: float = 997.0) -> np.ndarray:
    return 10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 11025, 12347, 16000, 22050, 44100, 48000])
def test_a_sine_at_minus_23_is_minus_23_lufs(view, rate):
    """EBU Tech 3341, case 1, as two speakers play it."""
    assert sound.loudness(view(sound=sine(-23, 5.03, rate), rate=rate)) == pytest.approx(-23.0, abs=0.1)


def test_silence_does_not_count_towards_loudness(view):
    """EBU Tech 3341, case 3: what lies 10 LU below the rest is gated out."""
    parts = [sine(-36, 10, 48000), sine(-23, 30, 48000), sine(-36, 10, 48000)]
    assert sound.loudness(view(sound=np.concatenate(parts), rate=48000)) == pytest.approx(-23.0, abs=0.1)


def test_loudness_agrees_with_torchaudio(view):
    random = np.random.default_rng(0)
    noise = random.normal(size=5 * 48000) * 0.1 * (1 + np.sin(np.arange(5 * 48000) / 20000)) ** 2
    noise = np.cumsum(noise) * 0.1 - np.cumsum(noise).mean() * 0.1
    noise = np.clip(noise / np.abs(noise).max(), -1, 1)
    two = torch.from_numpy(np.stack([noise, noise]))
    told = float(torchaudio.functional.loudness(two, 48000))
    assert sound.loudness(view(sound=noise, rate=48000)) == pytest.approx(told, abs=0.1)


def test_loudness_of_nothing_and_of_too_little(view):
    assert sound.loudness(view(sound=np.zeros(16000))) == -70.0
    assert sound.loudness(view(sound=sine(-20, 0.3, 16000))) is None


def test_silent_fraction(view):
    signal = np.concatenate([sine(-20, 3, 16000), sine(-70, 1, 16000)])
    made = view(sound=signal)
    assert sound.silent_fraction(made) == pytest.approx(0.25)
    assert sound.silent_fraction(made, silence_db=-80) == 0.0
    assert sound.silent_fraction(view(sound=np.zeros(100))) == 1.0


def test_clipped_fraction(view):
    assert sound.clipped_fraction(view(sound=sine(-1, 2, 16000))) == 0.0
    loud = np.clip(sine(6, 2, 16000), -1, 1)  # |sin| > 0.99 / 1.995: a share of 1 - 2/π · asin(0.496)
    assert sound.clipped_fraction(view(sound=loud)) == pytest.approx(1 - 2 / np.pi * np.arcsin(0.4962), abs=0.001)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_spectrogram_shows_a_tone_in_its_band_at_its_time_and_level(view, rate):
    signal = np.concatenate([np.zeros(rate), sine(-12, 1, rate, 1000.0)])
    levels = sound.spectrogram(view(sound=signal, rate=rate), 100.0, 3200.0, 5)  # edges at octaves
    assert levels.shape == (200, 5)
    assert levels[:95].max() == -80.0
    assert levels[110:190, 3].mean() == pytest.approx(-12.0, abs=2.0)  # 800 to 1600 Hz
    assert levels[110:190, [0, 1, 4]].max() < -30
    rise = np.flatnonzero(levels[:, 3] > -30)[0]
    assert abs(rise - 100) <= 2
