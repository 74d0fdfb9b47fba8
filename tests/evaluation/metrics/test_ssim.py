import numpy as np
import pytest
import torch

from mmldm_scale.evaluation.metrics.ssim import ssim
from tests.support.datasets.random_signals import noisy, pictures


def numpy_ssim(sample: np.ndarray, reference: np.ndarray) -> float:
    """SSIM of two (H, W) planes in [-1, 1], from its definition; borders are mirrored."""
    reach = np.arange(-5, 6)
    window = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def blur(plane: np.ndarray) -> np.ndarray:
        padded = np.lib.stride_tricks.sliding_window_view(np.pad(plane, 5, mode="reflect"), (11, 11))
        return (padded * window).sum(axis=(2, 3))

    a, b = blur(sample), blur(reference)
    aa, bb, ab = blur(sample**2) - a**2, blur(reference**2) - b**2, blur(sample * reference) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return (((2 * a * b + c1) * (2 * ab + c2)) / ((a**2 + b**2 + c1) * (aa + bb + c2))).mean()


def test_ssim_is_its_definition():
    reference, samples = pictures(), noisy(pictures(), 0.3)
    planes = [clips.double().flatten(1, 2).numpy() for clips in (samples.clamp(-1, 1), reference)]  # (B, F·3, S, S)
    expected = [np.mean([numpy_ssim(*pair) for pair in zip(*clip, strict=True)]) for clip in zip(*planes, strict=True)]
    np.testing.assert_allclose(ssim(samples, reference), expected, atol=1e-4)


def test_equal_pictures_have_1():
    assert ssim(pictures(), pictures()).numpy() == pytest.approx([1, 1], abs=1e-5)


def test_a_clip_counts_by_itself():
    reference, samples = pictures(), noisy(pictures(), 0.3)
    torch.testing.assert_close(ssim(samples, reference)[1:], ssim(samples[1:], reference[1:]))
