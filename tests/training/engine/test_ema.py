"""Averages with power-function profiles, compared with integrals computed here in float64."""

import numpy as np
import pytest
import torch

from mmldm_scale.training.engine import ema
from mmldm_scale.training.engine.ema import AveragingProfile, coefficients
from mmldm_scale.training.engine.optimizer import EMAAdamW, average_key

BATCH, STEPS = 4, 120
LENGTHS = (0.05, 0.1)
OTHERS = (0.04, 0.06, 0.08, 0.12)


def density(profile: AveragingProfile, times: np.ndarray) -> np.ndarray:
    """Return p at ``times``, made to sum to 1 over them."""
    values = np.where(times <= profile.samples_seen, times**profile.exponent, 0.0)
    return values / values.sum()


def midpoints(end: float, count: int = 200_000) -> np.ndarray:
    return (np.arange(count) + 0.5) * end / count


@pytest.fixture(scope="module")
def trained() -> tuple[np.ndarray, dict[AveragingProfile, np.ndarray]]:
    """The weights after each step, (STEPS, 5), and their averages by time and length, (5,) each."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    optimizer = EMAAdamW([weight], (*LENGTHS, *OTHERS), lr=0.05)
    history, averages = [], {}
    for end in range(BATCH, BATCH * STEPS + 1, BATCH):
        weight.grad = torch.sin(weight.detach() * 3 + end / 7) + weight.detach()
        exponents = map(ema.exponent, optimizer.lengths)
        optimizer.param_groups[0]["ema_decays"] = [ema.decay(exponent, BATCH, end) for exponent in exponents]
        optimizer.step()
        history.append(weight.detach().numpy().copy())
        for length in optimizer.lengths:
            averages[AveragingProfile(end, length)] = optimizer.state[weight][average_key(length)].numpy().copy()
    return np.array(history), averages


@pytest.mark.parametrize("length", [0.001, 0.02, 0.05, 0.1, 0.2, 0.28])
def test_length_is_the_standard_deviation_of_the_profile(length: float) -> None:
    times = midpoints(1.0)
    weights = density(AveragingProfile(1, length), times)
    mean = weights @ times
    assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(length, rel=1e-3)


def test_first_step_forgets_the_initial_weights() -> None:
    assert ema.decay(ema.exponent(0.05), BATCH, BATCH) == 0.0


@pytest.mark.parametrize("length", [*LENGTHS, *OTHERS])
def test_tracked_average_is_the_integral_over_the_weights(trained, length: float) -> None:
    history, averages = trained
    power = AveragingProfile(1, length).exponent + 1
    for step in (1, 2, 17, STEPS):
        shares = np.diff((np.arange(step + 1) / step) ** power)  # ∫ p over each step, during which weights are constant
        np.testing.assert_allclose(
            averages[AveragingProfile(BATCH * step, length)], shares @ history[:step], rtol=1e-12
        )


@pytest.mark.parametrize("length", OTHERS)
@pytest.mark.parametrize("until", [BATCH * STEPS, BATCH * STEPS // 2])
def test_average_of_another_length_is_made_of_snapshots(trained, length: float, until: int) -> None:
    """Off by no more than Cauchy and Schwarz allow: the distance of the profiles times how much the weights moved."""
    history, averages = trained
    kept = [AveragingProfile(end, size) for end in range(24, until + 1, 24) for size in LENGTHS]
    wanted = AveragingProfile(until, length)
    combination = coefficients(kept, wanted)
    assert combination.coefficients.sum() == pytest.approx(1.0, abs=1e-12)
    made = sum(c * averages[profile] for c, profile in zip(combination.coefficients, kept, strict=True))
    times = midpoints(until)
    profiles = np.array([density(profile, times) for profile in kept])
    meant = density(wanted, times)
    distance = np.linalg.norm(combination.coefficients @ profiles - meant)
    assert combination.error == pytest.approx(distance / np.linalg.norm(meant), rel=1e-2)
    assert combination.error < 0.03
    seen = history[: until // BATCH]
    moved = np.sqrt(((seen - seen.mean(axis=0)) ** 2).mean(axis=0) * len(times))
    assert (np.abs(made - averages[wanted]) <= 1.001 * distance * moved).all()
    np.testing.assert_allclose(made, averages[wanted], atol=2e-3)


def test_no_combination_that_sums_to_one_comes_closer() -> None:
    kept, wanted = (
        [AveragingProfile(end, size) for end in (40, 80, 120) for size in LENGTHS],
        AveragingProfile(120, 0.07),
    )
    best = coefficients(kept, wanted)
    times = midpoints(120)
    profiles, meant = np.array([density(profile, times) for profile in kept]), density(wanted, times)
    dice = np.random.default_rng(0)
    for _ in range(20):
        other = best.coefficients + (change := dice.normal(size=len(kept))) - change.mean()
        error = np.linalg.norm(other @ profiles - meant) / np.linalg.norm(meant)
        assert error > best.error


def test_a_stored_average_is_reproduced_exactly() -> None:
    kept = [AveragingProfile(end, size) for end in range(1000, 200_001, 1000) for size in LENGTHS]
    combination = coefficients(kept, AveragingProfile(150_000, 0.05))
    assert combination.coefficients[kept.index(AveragingProfile(150_000, 0.05))] == pytest.approx(1.0, abs=1e-6)
    assert np.abs(combination.coefficients).sum() == pytest.approx(1.0, abs=1e-6)
    assert combination.error < 1e-6
