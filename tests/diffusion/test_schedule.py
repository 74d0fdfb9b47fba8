import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler, timesteps


def alphas() -> np.ndarray:
    """ᾱ_t of the paper's schedule, from its definition."""
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def test_noise_is_added_as_in_equation_5():
    clean, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    time = torch.tensor([0, 500, 999])
    noisy = scheduler(DiffusionConfig()).add_noise(clean, noise, time)
    a = alphas()[time.numpy()].reshape(3, 1, 1, 1)
    expected = np.sqrt(a) * clean.numpy() + np.sqrt(1 - a) * noise.numpy()
    np.testing.assert_allclose(noisy.numpy(), expected, atol=1e-5)


def test_sampling_goes_evenly_from_the_last_timestep():
    assert timesteps(scheduler(DiffusionConfig()), 5).tolist() == [999, 799, 599, 399, 199]
    assert len(timesteps(scheduler(DiffusionConfig()), 50)) == 50


@pytest.mark.parametrize(("steps", "fit"), [(30, "20 or 25"), (999, "500 or 1000"), (1001, "500 or 1000")])
def test_steps_that_do_not_divide_the_schedule_are_refused(steps, fit):
    with pytest.raises(UserError, match=f"steps: {steps} does not divide .* {fit} fits"):
        timesteps(scheduler(DiffusionConfig()), steps)
