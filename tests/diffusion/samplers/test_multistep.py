"""The solvers of second order on Gaussians, whose probability flow is known in closed form."""

import numpy as np
import pytest
import torch

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.samplers import SAMPLERS, get_sampler
from tests.support.ideal_network import PREDICTIONS, flow, predict

STD = 0.8


def noise() -> torch.Tensor:
    return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(3))


def error(name: str, steps: int, settings: dict, end: int) -> float:
    """Return the largest error of the latents against those expected at timestep ``end``."""
    process = noise_process(DiffusionConfig(**settings))
    sample = get_sampler(name, process, steps)
    result = sample(lambda z, time: predict(z, settings, time, STD).float(), noise(), process, steps)
    return float((result.double() - flow(noise(), settings, STD, end)).abs().max())


DIFFUSION = {name: settings for name, settings in PREDICTIONS.items() if name != "flow"}


@pytest.mark.parametrize("settings", DIFFUSION.values(), ids=DIFFUSION)
@pytest.mark.parametrize(("name", "highest"), [("dpm++", 3), ("unipc", 4)])
def test_errors_fall_with_the_second_order(settings, name, highest):
    """The last step, from the least noise of the schedule to none, is the expected latents: of first order."""
    few, more, many = (error(name, steps, settings, end=0) for steps in (20, 40, 100))
    assert 1.7 < np.log2(few / more) < highest
    assert many < more < few


@pytest.mark.parametrize(("name", "highest"), [("dpm++", 2.4), ("unipc", 2.4)])
def test_errors_fall_with_the_second_order_along_a_flow(name, highest):
    """Down to clean latents, and on without a floor: each step takes the share of noise of its own timestep."""
    few, more, many, most = (error(name, steps, {"prediction": "flow"}, end=-1) for steps in (25, 50, 100, 250))
    assert 1.5 < np.log2(few / more) < highest
    assert 1.5 < np.log2(more / many) < highest
    assert most < many / 4


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_twenty_steps_are_closer_than_fifty_of_first_order(settings, name):
    assert error(name, 20, settings, end=-1) < error("auto", 50, settings, end=-1)


@pytest.mark.parametrize("settings", [{}, {"prediction": "flow"}], ids=["epsilon", "flow"])
@pytest.mark.parametrize("name", ["dpm++", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 61, 1000])  # of epsilon, from about 20 on, steps share timesteps
def test_any_number_of_steps_calls_the_network_as_often(name, steps, settings):
    times: list[int] = []

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:
        times.append(time)
        return predict(latents, settings, time, STD).float()

    result = SAMPLERS[name](network, noise(), noise_process(DiffusionConfig(**settings)), steps)
    assert len(times) == steps
    assert times == sorted(times, reverse=True)
    assert times[0] == 999
    assert (result - flow(noise(), settings, STD)).abs().max() < (2.5 if steps < 5 else 0.3)


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_a_flow_of_another_length_is_sampled_by_its_own_shares_of_noise(name):
    config, data = DiffusionConfig(prediction="flow", steps=37), 1.5

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:  # knows that all latents are 1.5: (z - data) / s
        return (latents - data) / ((time + 1) / 37)

    result = SAMPLERS[name](network, noise(), noise_process(config), 7)
    torch.testing.assert_close(result, torch.full_like(result, data), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_the_schedule_is_that_of_the_process(name):
    """A process with another schedule and length is sampled by its own numbers."""
    config = DiffusionConfig(steps=500, beta_end=0.02)
    process = noise_process(config)
    signal = process.alphas_cumprod.double()

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:  # knows that all latents are 1.5
        return ((latents - signal[time].sqrt() * 1.5) / (1 - signal[time]).sqrt()).float()

    result = SAMPLERS[name](network, noise(), process, 7)
    torch.testing.assert_close(result, torch.full_like(result, 1.5), atol=2e-3, rtol=0)
