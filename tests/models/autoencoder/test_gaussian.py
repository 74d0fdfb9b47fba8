import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

from mmldm_scale.models.autoencoder.gaussian import Gaussian


def gaussian() -> Gaussian:
    return Gaussian.from_moments(torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(0)))


def test_divergence_is_that_of_torch_distributions():
    posterior = gaussian()
    pointwise = kl_divergence(
        Normal(posterior.mean.double(), posterior.logvar.double().mul(0.5).exp()), Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl().double(), pointwise.sum(dim=(1, 2, 3)))


def test_divergence_is_the_expected_log_ratio():
    """The definition, E_q[log q − log p], integrated numerically for one element."""
    mean, logvar = 0.7, -1.3
    x = np.linspace(-12, 12, 200_001)
    log_q = -0.5 * ((x - mean) ** 2 / np.exp(logvar) + logvar)
    expected = np.trapezoid(np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + 0.5 * x**2), x)
    divergence = Gaussian(torch.full((1, 1, 1, 1), mean), torch.full((1, 1, 1, 1), logvar)).kl()
    np.testing.assert_allclose(divergence.item(), expected, rtol=1e-5)


def test_samples_have_the_posteriors_moments():
    posterior = Gaussian(torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 1, 1), -2.0))
    noise = torch.randn(200_000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = posterior.sample(noise)
    assert abs(samples.mean().item() - 3.0) < 0.01
    assert abs(samples.var().item() - np.exp(-2.0)) < 0.01


def test_moments_out_of_range_stay_finite():
    wild = Gaussian.from_moments(torch.full((1, 2, 1, 1), 1e4))
    assert torch.isfinite(wild.kl()).all()
    assert torch.isfinite(wild.sample(torch.ones(1, 1, 1, 1))).all()
