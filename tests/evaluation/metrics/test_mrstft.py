import numpy as np
import torch

from mmldm_scale.evaluation.metrics.mrstft import multi_resolution_stft
from tests.support.datasets.random_signals import noisy, sounds


def numpy_spectrum(sound: np.ndarray, fft: int, hop: int, window: int) -> np.ndarray:
    """|STFT| of (N,), frames centred on multiples of ``hop``, from discrete Fourier transforms."""
    shape = np.zeros(fft)
    left = (fft - window) // 2
    shape[left : left + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(sound, fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    return np.sqrt(np.maximum(np.abs(np.fft.rfft(frames * shape)) ** 2, 1e-7))


def test_the_distance_is_parallel_wavegans():
    reference, samples = sounds(), noisy(sounds(), 0.1)
    expected = []
    for sample, original in zip(samples.double().numpy(), reference.double().numpy(), strict=True):
        parts = []
        for resolution in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
            a, b = (numpy_spectrum(sound, *resolution) for sound in (sample, original))
            parts.append(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) + np.abs(np.log(a) - np.log(b)).mean())
        expected.append(np.mean(parts))
    np.testing.assert_allclose(multi_resolution_stft(samples, reference), expected, rtol=1e-3)


def test_equal_sounds_have_0_and_silence_a_finite_distance():
    silence = torch.zeros(2, 4000)
    for sound in (sounds(), silence):
        assert multi_resolution_stft(sound, sound).tolist() == [0, 0]
    assert torch.isfinite(multi_resolution_stft(sounds(), silence)).all()


def test_a_clip_counts_by_itself():
    samples, reference = noisy(sounds(), 0.3), sounds()
    alone = multi_resolution_stft(samples[1:], reference[1:])
    torch.testing.assert_close(multi_resolution_stft(samples, reference)[1:], alone)
