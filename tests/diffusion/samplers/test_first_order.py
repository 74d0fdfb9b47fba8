"""DDIM and Euler's method, against their equations in float64 and against diffusers' schedulers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.samplers import SAMPLERS, get_sampler
from mmldm_scale.diffusion.samplers.contract import even_intervals
from mmldm_scale.diffusion.schedule import scheduler
from tests.support.ideal_network import PREDICTIONS, STD, mixture, posterior_means, predict


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (3, 4, 2, 2)), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 5, 50, 7, 30])
def test_each_step_mixes_the_expected_latents_and_noise_anew(settings, steps):
    process, visited = noise_process(DiffusionConfig(**settings)), []

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:
        visited.append(time)
        return predict(latents, settings, time, STD).float()

    result = get_sampler("auto", process, steps)(network, noise(), process, steps)
    z, ends = noise().double().numpy(), np.linspace(1000, 0, steps + 1).round().astype(int) - 1
    for time, end in pairwise(ends.tolist()):
        latents, remaining_noise = posterior_means(z, settings, time, STD)
        alpha, sigma = mixture(settings, end)
        z = alpha * latents + sigma * remaining_noise
    np.testing.assert_allclose(result.numpy(), z, atol=1e-3)
    assert visited == ends[:-1].tolist()


@pytest.mark.parametrize("length", [1000, 37])
def test_any_number_of_steps_covers_the_schedule_in_steps_that_differ_by_one_at_most(length):
    for steps in range(1, length + 1):
        intervals = even_intervals(length, steps)
        assert [start for start, _ in intervals] + [-1] == [length - 1, *(end for _, end in intervals)]
        lengths = {start - end for start, end in intervals}
        assert lengths <= {length // steps, -(-length // steps)}, steps


@pytest.mark.parametrize("steps", [3, 7, 16, 30, 333, 1000])
def test_the_timesteps_are_those_of_diffusers(steps):
    reference = scheduler(DiffusionConfig())
    reference.set_timesteps(steps)
    assert [start for start, _ in even_intervals(1000, steps)] == reference.timesteps.tolist()


def test_ddim_is_its_equation_as_published():
    """z' = √ᾱ' · (z − √(1 − ᾱ) ε) / √ᾱ + √(1 − ᾱ') ε."""
    process, z = noise_process(DiffusionConfig()), noise().double().numpy()
    for time in range(999, -1, -20):
        (alpha, sigma), (then_alpha, then_sigma) = mixture({}, time), mixture({}, time - 20)
        epsilon = predict(torch.from_numpy(z), {}, time, STD).numpy()
        z = then_alpha * (z - sigma * epsilon) / alpha + then_sigma * epsilon
    result = SAMPLERS["ddim"](lambda latents, time: predict(latents, {}, time, STD).float(), noise(), process, 50)
    np.testing.assert_allclose(result.numpy(), z, atol=2e-4)


@pytest.mark.parametrize("settings", list(PREDICTIONS.values())[:3], ids=list(PREDICTIONS)[:3])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_ddim_is_that_of_diffusers_bit_for_bit(settings, steps):
    config, weight = DiffusionConfig(**settings), noise(16, 16) / 4

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:  # nonlinear, so that nothing cancels
        return torch.tanh(latents.flatten(1) @ weight + time / 1000).view_as(latents)

    result = SAMPLERS["ddim"](network, noise(), noise_process(config), steps)
    reference, latents = scheduler(config), noise()
    reference.set_timesteps(steps)
    for time in reference.timesteps.tolist():
        latents = reference.step(network(latents, time), time, latents, eta=0.0).prev_sample
    assert torch.equal(result, latents)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_is_that_of_diffusers(steps):
    process, weight = noise_process(DiffusionConfig(prediction="flow")), noise(16, 16) / 4

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:
        return torch.tanh(latents.flatten(1) @ weight + time / 1000).view_as(latents)

    result = SAMPLERS["euler"](network, noise(), process, steps)
    reference, latents = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000), noise()
    reference.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    for time in reference.timesteps:  # T · s, one more than our timestep
        latents = reference.step(network(latents, round(float(time)) - 1), time, latents).prev_sample
    torch.testing.assert_close(result, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("steps", [4, 1000])
def test_the_exact_prediction_leads_from_any_timestep_to_the_next_and_to_the_latents(settings, steps):
    """With the target of known latents and noise as the prediction, each step ends at their mixture."""
    process, seen = noise_process(DiffusionConfig(**settings)), []
    clean, start = noise(2, 4, 2, 3).split(1)

    def network(latents: torch.Tensor, time: int) -> torch.Tensor:
        expected = process.corrupt(clean, start, torch.tensor([time]))
        seen.append(float((latents - expected).abs().max()))
        return process.target(clean, start, torch.tensor([time]))

    first = process.corrupt(clean, start, torch.tensor([999]))
    result = get_sampler("auto", process, steps)(network, first, process, steps)
    assert max(seen) < 2e-3
    torch.testing.assert_close(result, clean, atol=2e-3, rtol=0)
