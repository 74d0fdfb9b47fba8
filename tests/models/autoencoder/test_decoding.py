"""The samplers on Gaussians, whose noise prediction and whose flow from noise to picture are known in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, DiffusionConfig
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.decoding import check_decoding, denoise

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2)  # ᾱ
STD = 0.8


class Analytic:
    """In place of the decoder: exact where the clean latents of a picture are N(its content, STD²)."""

    process = noise_process(DiffusionConfig())

    def __init__(self) -> None:
        self.calls: list[int] = []  # pictures in each

    def __call__(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.calls.append(len(noisy))
        kept = torch.from_numpy(ALPHAS)[time].view(-1, 1, 1, 1)
        mean = condition.content.double().view(-1, 1, 1, 1)
        return ((noisy - kept.sqrt() * mean) * (1 - kept).sqrt() / (kept * STD**2 + 1 - kept)).float()


def told(means: list[float]) -> Condition:
    count = len(means)
    return Condition(
        [torch.zeros(count, 1, 1, 1)], torch.tensor(means)[:, None], torch.zeros(count, 1, 1), None, None, "shared"
    )


def noise(count: int) -> Tensor:
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(3))


def flow(start: Tensor, means: list[float], end: int | None = None) -> np.ndarray:
    """Where the probability flow takes ``start`` at timestep 999: to the clean latents, or to ``end``'s best guess."""
    z, mean = start.double().numpy(), np.array(means).reshape(-1, 1, 1, 1)

    def spread(kept: float) -> float:
        return np.sqrt(kept * STD**2 + 1 - kept)

    unit = (z - np.sqrt(ALPHAS[999]) * mean) / spread(ALPHAS[999])  # the flow keeps how many deviations off one is
    if end is None:
        return mean + STD * unit
    return mean + np.sqrt(ALPHAS[end]) * STD**2 / spread(ALPHAS[end]) * unit  # E[clean | z at ``end``]


def error(name: str, steps: int, end: int | None = None) -> float:
    means = [1.5, -0.5]
    found = denoise(Analytic(), noise(2), told(means), None, DecodingConfig(name, steps), torch.ones(2))
    return float(np.abs(found.numpy() - flow(noise(2), means, end)).max())


@pytest.mark.parametrize(
    ("name", "end", "order"), [("ddim", None, (0.8, 1.2)), ("dpm++", 0, (1.8, 3)), ("unipc", 0, (1.8, 4))]
)
def test_errors_fall_with_the_samplers_order(name, end, order):
    """The solvers' last step, from the least noise of the schedule to none, is the best guess: of first order."""
    few, more, many = (error(name, steps, end) for steps in (20, 40, 100))
    assert order[0] < np.log2(few / more) < order[1]
    assert many < more < few


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_ten_steps_of_a_solver_are_closer_than_fifty_of_ddim(name):
    assert error(name, 10) < error("ddim", 50)


def test_ddim_is_its_equation():
    z, mean = noise(2).double().numpy(), np.array([1.5, -0.5]).reshape(-1, 1, 1, 1)
    for time in range(999, -1, -20):
        now, then = ALPHAS[time], ALPHAS[time - 20] if time >= 20 else 1.0
        e = (z - np.sqrt(now) * mean) * np.sqrt(1 - now) / (now * STD**2 + 1 - now)
        z = np.sqrt(then) * (z - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
    found = denoise(Analytic(), noise(2), told([1.5, -0.5]), None, DecodingConfig("ddim", 50), torch.ones(2))
    np.testing.assert_allclose(found.numpy(), z, atol=2e-4)


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_solvers_take_any_number_of_steps(name):
    for steps in (1, 2, 3, 7, 61, 250):  # from about 20 on, steps share timesteps, at last even the first ones
        decoder = Analytic()
        found = denoise(decoder, noise(2), told([1.5, -0.5]), None, DecodingConfig(name, steps), torch.ones(2))
        assert decoder.calls == [2] * steps
        assert np.abs(found.numpy() - flow(noise(2), [1.5, -0.5])).max() < (1.5 if steps < 5 else 0.3)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (DecodingConfig("ddim", 1001), "decoding.steps: 1001: must be from 1 to the number of timesteps"),
        (DecodingConfig("euler", 10), "decoding.sampler: euler needs prediction=flow, not epsilon"),
        (DecodingConfig("heun", 10), "decoding.sampler: 'heun' is unknown; allowed: ddim, dpm[+][+], unipc"),
    ],
)
def test_what_cannot_decode_is_refused(decoding, message):
    with pytest.raises(UserError, match=message):
        check_decoding(decoding)
    with pytest.raises(UserError, match=message):
        denoise(Analytic(), noise(2), told([1.5, -0.5]), None, decoding, torch.ones(2))


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_guidance_leads_away_from_the_null_condition_where_it_is_asked_for(name):
    """φ · ε(1) − (φ − 1) · ε(0) is the noise of the Gaussian around φ; two pictures of three are guided."""
    decoder, guidance = Analytic(), torch.tensor([1.0, 2.0, 3.0])
    found = denoise(decoder, noise(3), told([1.0] * 3), told([0.0] * 3), DecodingConfig(name, 25), guidance)
    expected = denoise(Analytic(), noise(3), told([1.0, 2.0, 3.0]), None, DecodingConfig(name, 25), torch.ones(3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert decoder.calls == [5] * 25  # one pass a step: three pictures, and two again without their condition


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_picture_does_not_depend_on_those_it_is_drawn_with(name, guided):
    means, guidance = [1.0, -1.0, 0.5, 2.0, -2.0], torch.tensor([1.0, 1.0, 3.0, 1.5, 1.0])
    null = told([0.0] * 5) if guided else None
    together = denoise(Analytic(), noise(5), told(means), null, DecodingConfig(name, 10), guidance)
    for pictures in (1, 4):
        decoder = Analytic()
        found = denoise(decoder, noise(5), told(means), null, DecodingConfig(name, 10, pictures=pictures), guidance)
        torch.testing.assert_close(found, together, rtol=1e-5, atol=1e-5)
        assert max(decoder.calls) <= max(pictures, 1 + guided)
