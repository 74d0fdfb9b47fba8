import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.schedule import diffusers_scheduler, scheduler


def alphas() -> np.ndarray:
    """ᾱ_t of the default schedule, from its definition."""
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def test_noise_is_added_as_in_equation_5():
    clean, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    time = torch.tensor([0, 500, 999])
    noisy = scheduler(DiffusionConfig()).add_noise(clean, noise, time)
    a = alphas()[time.numpy()].reshape(3, 1, 1, 1)
    expected = np.sqrt(a) * clean.numpy() + np.sqrt(1 - a) * noise.numpy()
    np.testing.assert_allclose(noisy.numpy(), expected, atol=1e-5)


def test_an_exported_schedule_samples_evenly_from_the_last_timestep():
    schedule = diffusers_scheduler(DiffusionConfig(prediction="v"))
    schedule.set_timesteps(5)
    assert schedule.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert schedule.config.prediction_type == "v_prediction"


def test_a_flow_is_exported_as_euler_steps():
    schedule = diffusers_scheduler(DiffusionConfig(prediction="flow", steps=500))
    assert isinstance(schedule, FlowMatchEulerDiscreteScheduler)
    assert schedule.config.num_train_timesteps == 500
