"""AdamW with averages: torch's steps to the last bit, and each average's recurrence."""

import pytest
import torch

from mmldm_scale.training.engine.optimizer import EMAAdamW, average_key, learning_rate

LENGTHS = (0.05, 0.1)


def decays(step: int) -> list[float]:
    return [0.5 + step / 10, 0.9 - step / 10]


def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, count: int) -> list[torch.Tensor]:
    history = []
    for i in range(count):
        weight.grad = torch.sin(weight.detach() * (i + 1))
        if isinstance(optimizer, EMAAdamW):
            optimizer.param_groups[0]["ema_decays"] = decays(i)
        optimizer.step()
        history.append(weight.detach().clone())
    return history


def test_weights_are_those_of_torchs_adamw_and_the_averages_follow_their_recurrences() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    start = ours.detach().clone()
    optimizer = EMAAdamW([ours], LENGTHS, lr=0.1, weight_decay=0.01)
    history = steps(optimizer, ours, 4)
    assert torch.equal(history[-1], steps(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01), theirs, 4)[-1])
    for number, length in enumerate(LENGTHS):
        average = start.double()
        for i, weight in enumerate(history):
            average = decays(i)[number] * average + (1 - decays(i)[number]) * weight.double()
        torch.testing.assert_close(optimizer.state[ours][average_key(length)].double(), average, rtol=1e-6, atol=1e-7)


def test_averages_go_through_the_state_dictionary() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = EMAAdamW([weight], LENGTHS, lr=0.1)
    steps(optimizer, weight, 2)
    other = EMAAdamW([torch.nn.Parameter(torch.ones(3))], LENGTHS, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    for key in map(average_key, LENGTHS):
        assert torch.equal(state[key], optimizer.state[weight][key])


def test_learning_rate_derives_from_samples_seen() -> None:
    assert learning_rate(1e-4, 1000, 250) == pytest.approx(2.5e-5)
    assert learning_rate(1e-4, 1000, 5000) == 1e-4
    assert learning_rate(1e-4, 0, 1) == 1e-4
