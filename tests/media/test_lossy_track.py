"""A waveform through AAC: as a written and decoded mp4 has it, not shifted."""

import numpy as np
import pytest

from mmldm_scale.media.lossy_track import through_aac


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_the_sound_is_close_and_where_it_was(rate):
    time = np.arange(round(1.6 * rate)) / rate
    waveform = (0.4 * np.sin(2 * np.pi * 300 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2).astype(np.float32)
    lossy = through_aac(waveform, rate)
    assert (lossy.shape, lossy.dtype) == (waveform.shape, np.float32)
    assert not np.array_equal(lossy, waveform)
    errors = {shift: np.abs(np.roll(waveform, shift) - lossy)[500:-500].mean() for shift in range(-3, 4)}
    assert min(errors, key=errors.get) == 0
    assert errors[0] < 0.01


def test_equal_input_gives_equal_output_and_other_rates_are_refused():
    click = np.zeros(8000, np.float32)
    click[4000] = 0.9
    assert np.array_equal(through_aac(click, 16000), through_aac(click, 16000))
    assert abs(int(np.abs(through_aac(click, 16000)).argmax()) - 4000) <= 1
    with pytest.raises(ValueError, match="12345 Hz: AAC has only 96000"):
        through_aac(click, 12345)
