"""AdamW with an average: torch's steps to the last bit, and the average's recurrence."""

import pytest
import torch

from mmldm_scale.training.optimizer import EMAAdamW, ema_decay, learning_rate


def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, count: int) -> list[torch.Tensor]:
    history = []
    for i in range(count):
        weight.grad = torch.sin(weight.detach() * (i + 1))
        if isinstance(optimizer, EMAAdamW):
            optimizer.param_groups[0]["ema_decay"] = 0.5 + i / 10
        optimizer.step()
        history.append(weight.detach().clone())
    return history


def test_weights_are_those_of_torchs_adamw_and_the_average_follows_its_recurrence() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    start = ours.detach().clone()
    optimizer = EMAAdamW([ours], lr=0.1, weight_decay=0.01)
    history = steps(optimizer, ours, 4)
    assert torch.equal(history[-1], steps(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01), theirs, 4)[-1])
    average = start.double()
    for i, weight in enumerate(history):
        decay = 0.5 + i / 10
        average = decay * average + (1 - decay) * weight.double()
    torch.testing.assert_close(optimizer.state[ours]["ema"].double(), average, rtol=1e-6, atol=1e-7)


def test_average_goes_through_the_state_dictionary() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = EMAAdamW([weight], lr=0.1)
    steps(optimizer, weight, 2)
    other = EMAAdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    assert torch.equal(state["ema"], optimizer.state[weight]["ema"])


def test_schedules_derive_from_samples_seen() -> None:
    assert learning_rate(1e-4, 1000, 250) == pytest.approx(2.5e-5)
    assert learning_rate(1e-4, 1000, 5000) == 1e-4
    assert learning_rate(1e-4, 0, 1) == 1e-4
    assert ema_decay(500, 50, 1_000_000) == pytest.approx(0.5**0.1)
    assert ema_decay(500, 50, 2_000) == pytest.approx(0.5**0.5)  # a twentieth of 2,000 is the half-life
    assert ema_decay(500, 50, 50) < 1e-6
