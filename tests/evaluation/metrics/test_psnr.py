import numpy as np
import torch

from mmldm_scale.evaluation.metrics.psnr import psnr
from tests.support.datasets.random_signals import noisy, pictures


def test_psnr_is_its_definition_for_each_picture_then_averaged():
    reference, samples = pictures(), noisy(pictures(), 0.3)
    errors = ((samples.clamp(-1, 1) - reference).numpy().astype(np.float64) ** 2).mean(axis=(2, 3, 4))
    np.testing.assert_allclose(psnr(samples, reference), (10 * np.log10(4 / errors)).mean(axis=1), rtol=1e-5)


def test_equal_pictures_have_100_db():
    assert psnr(pictures(), pictures()).tolist() == [100, 100]


def test_a_clip_counts_by_itself():
    reference, samples = pictures(), noisy(pictures(), 0.3)
    torch.testing.assert_close(psnr(samples, reference)[1:], psnr(samples[1:], reference[1:]))
