import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.noise_process import Diffusion, noise_process
from mmldm_scale.diffusion.samplers import SAMPLERS, Predict, Sampler, get_sampler
from tests.support.ideal_network import PREDICTIONS, predict

EPSILON, V, FLOW = (noise_process(DiffusionConfig(prediction=kind)) for kind in ("epsilon", "v", "flow"))
FITTING = [
    (name, settings)
    for settings in PREDICTIONS.values()
    for name in ("ddim", "euler", "dpm++", "unipc")
    if name != ("ddim" if settings.get("prediction") == "flow" else "euler")
]


def test_auto_is_ddim_for_diffusion_and_euler_for_a_flow():
    assert get_sampler("auto", EPSILON, 50) is SAMPLERS["ddim"]
    assert get_sampler("auto", V, 50) is SAMPLERS["ddim"]
    assert get_sampler("auto", FLOW, 50) is SAMPLERS["euler"]


@pytest.mark.parametrize(("name", "settings"), FITTING)
def test_a_sampler_keeps_nothing_from_call_to_call(name, settings):
    """The same process and sampler give the same latents again, whatever was sampled between."""
    process, noise = noise_process(DiffusionConfig(**settings)), torch.randn(2, 5)

    def network(latents: Tensor, time: int) -> Tensor:
        return predict(latents, settings, time, 0.3).float()

    first = SAMPLERS[name](network, noise, process, 10)
    SAMPLERS[name](network, noise, process, 4)
    assert torch.equal(SAMPLERS[name](network, noise, process, 10), first)
    assert first.shape == noise.shape


@pytest.mark.parametrize(("name", "settings"), FITTING)
def test_modalities_in_one_tensor_are_sampled_as_they_are_apart(name, settings):
    process, noise = noise_process(DiffusionConfig(**settings)), torch.randn(2, 7)

    def network(latents: Tensor, time: int) -> Tensor:
        return predict(latents, settings, time, 0.3).float()

    together = SAMPLERS[name](network, noise, process, 5)
    apart = [SAMPLERS[name](network, part, process, 5) for part in noise.split([3, 4], dim=1)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "process", "steps", "message"),
    [
        ("euler", EPSILON, 10, "sampler: euler needs prediction=flow, not epsilon; allowed: ddim, dpm++, unipc"),
        ("ddim", FLOW, 10, "sampler: ddim needs prediction=epsilon or v, not flow; allowed: euler, dpm++, unipc"),
        ("heun", V, 10, "sampler: 'heun' is unknown; allowed: ddim, dpm++, unipc"),
        ("dpm++", V, 0, "steps: 0: must be from 1 to the number of timesteps of the noise schedule, 1000"),
        ("ddim", V, 1001, "steps: 1001: must be from 1 to the number of timesteps of the noise schedule, 1000"),
        ("unipc", FLOW, 1001, "steps: 1001: must be from 1 to the number of timesteps of the noise schedule, 1000"),
        ("auto", FLOW, -3, "steps: -3: must be from 1 to the number of timesteps of the noise schedule, 1000"),
    ],
)
def test_what_does_not_fit_is_refused_before_and_in_the_call(name, process, steps, message):
    with pytest.raises(UserError) as refusal:
        get_sampler(name, process, steps, prefix="decoding.")
    assert str(refusal.value) == f"decoding.{message}"
    if name in SAMPLERS:
        with pytest.raises(UserError) as refusal:
            SAMPLERS[name](lambda latents, time: latents, torch.zeros(1, 2), process, steps)
        assert str(refusal.value) == message


def test_a_sampler_from_outside_the_package_is_one_entry(monkeypatch):
    def one_step(predict: Predict, noise: Tensor, process: Diffusion, steps: int) -> Tensor:
        return process.clean_and_noise(predict(noise, process.length - 1), noise, process.length - 1)[0]

    monkeypatch.setitem(SAMPLERS, "one_step", Sampler("one_step", one_step, Diffusion))
    sample, noise = get_sampler("one_step", V, 1), torch.randn(2, 3)
    expected = SAMPLERS["ddim"](lambda latents, time: latents / 2, noise, V, 1)
    assert torch.equal(sample(lambda latents, time: latents / 2, noise, V, 1), expected)
    with pytest.raises(UserError, match="one_step needs prediction=epsilon or v, not flow; allowed: euler, "):
        get_sampler("one_step", FLOW, 1)
