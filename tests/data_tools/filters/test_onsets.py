"""Flashes and beeps at known times: onsets are found there, and so is the delay between them."""

import numpy as np
import pytest

from data_tools.filters.onsets import agreement, picture_onsets, sound_onsets

RATE = 16000
TIMES = np.array([0.8, 2.1, 3.3, 5.0, 6.4, 7.2, 8.9])  # seconds


def flashes(times: np.ndarray) -> np.ndarray:
    """Return 10 s of pictures: noise that is lit for two pictures from each of ``times`` on."""
    pictures = np.random.default_rng(0).integers(90, 110, (100, 128, 128))
    for time in times:
        first = int(np.ceil(time * 10 - 1e-6))
        pictures[first : first + 2] += 100
    return pictures


def beeps(times: np.ndarray, noise: float = 0.001) -> np.ndarray:
    """Return 10 s of faint noise with a beep of 0.1 s at each of ``times``."""
    signal = noise * np.random.default_rng(1).normal(size=10 * RATE)
    for time in times:
        first = round(time * RATE)
        tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 10) / RATE)
        signal[first : first + len(tone)] += tone[: len(signal) - first]
    return signal


def test_onsets_are_found_when_they_happen(view):
    made = view(flashes(TIMES), beeps(TIMES))
    assert sound_onsets(made) == pytest.approx(TIMES, abs=0.03)
    assert picture_onsets(made) == pytest.approx(TIMES - 0.05, abs=0.051)  # seen between two pictures


@pytest.mark.parametrize("delay", [-0.4, -0.2, 0.0, 0.3])
def test_the_delay_between_them_is_found(view, delay):
    made = agreement(view(flashes(TIMES), beeps(TIMES + delay)))
    assert made.offset == pytest.approx(delay, abs=0.06)
    assert made.share == (1.0 if delay == 0 else 0.0)


def test_half_of_the_onsets_agree(view):
    made = agreement(view(flashes(TIMES[:4]), beeps(TIMES)))
    assert made.share == pytest.approx(4 / 7)


def test_the_surplus_is_what_chance_does_not_explain(view):
    """Seven onsets that meet against the same turned; and many that meet no better than turned ones do."""
    made = agreement(view(flashes(TIMES), beeps(TIMES)))
    turned = []
    for turn in np.arange(0.6, 9.5, 0.37):
        gaps = np.abs((sound_onsets(view(flashes(TIMES), beeps(TIMES))) + turn) % 10 - (TIMES[:, None] - 0.05))
        met = int((gaps.min(0) <= 0.1).sum())
        turned.append(met / (14 - met))
    assert made.surplus == pytest.approx(1 - np.mean(turned), abs=0.06)
    dense = np.arange(0.4, 9.7, 0.4)
    made = agreement(view(flashes(dense), beeps(np.sort(np.random.default_rng(3).uniform(0.3, 9.7, 24)))))
    assert made.share > 0.1 > abs(made.surplus)


def test_without_any_onset_nothing_is_said(view):
    noise = 0.1 * np.random.default_rng(2).normal(size=10 * RATE)
    made = agreement(view(flashes(TIMES[:0]), noise))
    assert (made.share, made.surplus, made.offset) == (None, None, None)
    made = agreement(view(flashes(TIMES), noise))
    assert (made.share, made.surplus, made.offset) == (0.0, 0.0, None)


def test_a_seam_is_no_onset(view):
    pictures = flashes(TIMES[:0])
    pictures[50:] += 60
    sound = beeps(TIMES[:0])
    sound[5 * RATE :] *= 100
    assert len(picture_onsets(view(pictures, sound))) == len(sound_onsets(view(pictures, sound))) == 1
    joined = view(pictures, sound, seams=(50,))
    assert len(picture_onsets(joined)) == len(sound_onsets(joined)) == 0
