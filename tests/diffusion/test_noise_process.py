"""Corruption, targets and weights, each against its paper's equation in float64."""

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.schedule import scheduler

TIME = np.array([0, 1, 300, 640, 998, 999])
RANDOM = np.random.default_rng(0)
CLEAN, NOISE = (RANDOM.standard_normal((len(TIME), 4, 2, 3)) for _ in range(2))
VARIANTS = [{}, {"prediction": "v"}, {"prediction": "v", "zero_terminal_snr": True}, {"prediction": "flow"}]


def alphas_bar(zero_terminal_snr: bool = False) -> np.ndarray:
    """ᾱ_t of the default schedule; rescaled as in Algorithm 1 of Lin et al. (arXiv 2305.08891)."""
    root = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2))
    if zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def mixture(settings: dict, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factors of latents and noise at ``time``."""
    if settings.get("prediction") == "flow":
        share = (time + 1) / 1000
        return 1 - share, share
    a = alphas_bar(settings.get("zero_terminal_snr", False))[time]
    return np.sqrt(a), np.sqrt(1 - a)


def as_torch(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) if array.dtype == int else torch.from_numpy(array).float() for array in arrays]


@pytest.mark.parametrize("settings", VARIANTS)
def test_latents_are_corrupted_and_targets_are_as_the_papers_say(settings):
    process = noise_process(DiffusionConfig(**settings))
    kept, added = (factor.reshape(-1, 1, 1, 1) for factor in mixture(settings, TIME))
    noisy = process.corrupt(*as_torch(CLEAN, NOISE, TIME)).numpy()
    np.testing.assert_allclose(noisy, kept * CLEAN + added * NOISE, atol=1e-4)
    expected = {"epsilon": NOISE, "v": kept * NOISE - added * CLEAN, "flow": NOISE - CLEAN}
    target = process.target(*as_torch(CLEAN, NOISE, TIME)).numpy()
    np.testing.assert_allclose(target, expected[settings.get("prediction", "epsilon")], atol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS[2:])
def test_the_last_timestep_is_pure_noise(settings):
    clean, noise, time = as_torch(CLEAN, NOISE, np.full(len(TIME), 999))
    assert torch.equal(noise_process(DiffusionConfig(**settings)).corrupt(clean, noise, time), noise)


@pytest.mark.parametrize("settings", VARIANTS[:3])
def test_min_snr_weights(settings):
    a = alphas_bar(settings.get("zero_terminal_snr", False))
    snr = a / (1 - a)
    clamped = np.minimum(snr, 5.0)
    expected = clamped / snr if not settings else clamped / (snr + 1)
    weight = noise_process(DiffusionConfig(**settings, min_snr=5.0)).weight(torch.arange(1000))
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-3, atol=1e-6)
    assert weight.dtype == torch.float32
    assert torch.equal(noise_process(DiffusionConfig(**settings)).weight(torch.arange(1000)), torch.ones(1000))


def test_at_zero_snr_nothing_of_v_counts():
    process = noise_process(DiffusionConfig(prediction="v", zero_terminal_snr=True, min_snr=5.0))
    assert process.weight(torch.tensor([999])).item() == 0


@pytest.mark.parametrize("settings", VARIANTS[:3])
@pytest.mark.parametrize("time", [0, 300, 998])
def test_the_right_prediction_gives_latents_and_noise_back(settings, time):
    process = noise_process(DiffusionConfig(**settings))
    (clean, noise), now = as_torch(CLEAN, NOISE), torch.tensor([time])
    noisy = process.corrupt(clean, noise, now)
    recovered = process.clean_and_noise(process.target(clean, noise, now), noisy, time)
    torch.testing.assert_close(recovered, (clean, noise), atol=2e-3, rtol=0)


@pytest.mark.parametrize("settings", VARIANTS[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_corruption_and_targets_are_those_of_diffusers_bit_for_bit(settings, dtype):
    config = DiffusionConfig(**settings)
    process, reference = noise_process(config), scheduler(config)
    clean, noise, time = (torch.from_numpy(CLEAN).to(dtype), torch.from_numpy(NOISE).to(dtype), torch.from_numpy(TIME))
    assert torch.equal(process.alphas_cumprod, reference.alphas_cumprod)
    assert torch.equal(process.corrupt(clean, noise, time), reference.add_noise(clean, noise, time))
    if settings:
        assert torch.equal(process.target(clean, noise, time), reference.get_velocity(clean, noise, time))


@pytest.mark.parametrize("settings", VARIANTS)
def test_time_may_be_one_for_all_samples(settings):
    process = noise_process(DiffusionConfig(**settings))
    clean, noise = as_torch(CLEAN, NOISE)
    for_all = process.corrupt(clean, noise, torch.tensor([300]))
    assert torch.equal(for_all, process.corrupt(clean, noise, torch.full((len(TIME),), 300)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"prediction": "flow", "min_snr": 5.0},
            "diffusion.min_snr: must be 0 for prediction=flow",
        ),
        ({"min_snr": -1.0}, "diffusion.min_snr: must not be negative"),
        ({"zero_terminal_snr": True}, "diffusion.zero_terminal_snr: needs prediction=v, not epsilon"),
        ({"zero_terminal_snr": True, "prediction": "flow"}, "needs prediction=v, not flow: a flow ends in pure noise"),
        ({"time_distribution": "logit_normal"}, "logit_normal needs prediction=flow, not epsilon"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, says):
    with pytest.raises(UserError, match=says) as refusal:
        DiffusionConfig(**settings)
    assert "\n" not in str(refusal.value)
