"""Means over the samples since the last record, and what a checkpoint holds of them."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mmldm_scale.training.monitoring.interval_means import IntervalMeans

CPU = torch.device("cpu")


@dataclass
class Ranks:
    """The world of one of ``size`` ranks, the others' values given."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    others: list[Any] = field(default_factory=list)

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def sum(self, values: list[float]) -> list[float]:
        return values


def steps(count: int) -> list[dict[str, list[torch.Tensor]]]:
    """Return the values of steps of two micro-batches; every third one has a tag more."""
    random = torch.Generator().manual_seed(0)

    def values(number: int) -> dict[str, list[torch.Tensor]]:
        tags = {"loss": (4,), "by_time": (4, 2)} | ({"probe": (4,)} if number % 3 == 0 else {})
        return {tag: [torch.rand(shape, generator=random) for _ in range(2)] for tag, shape in tags.items()}

    return [values(number) for number in range(count)]


def add(interval: IntervalMeans, some: list[dict[str, list[torch.Tensor]]]) -> IntervalMeans:
    for values in some:
        interval.add(values)
    return interval


def test_the_mean_is_over_all_samples_since_the_last_record() -> None:
    interval, some = IntervalMeans(Ranks()), steps(7)
    means = add(interval, some).take()
    for tag in ("loss", "probe"):
        values = torch.cat([part for step in some if tag in step for part in step[tag]])
        assert means[tag] == pytest.approx(values.double().mean().item(), rel=1e-12)
    pairs = torch.cat([part for step in some for part in step["by_time"]]).double().sum(dim=0)
    assert means["by_time"] == pytest.approx((pairs[0] / pairs[1]).item(), rel=1e-12)
    assert interval.take() == {}


def test_an_interval_that_is_saved_in_its_middle_has_the_same_means_bit_for_bit() -> None:
    undisturbed = add(IntervalMeans(Ranks()), steps(7)).take()
    saved = json.dumps(add(IntervalMeans(Ranks()), steps(7)[:4]).state_dict())
    resumed = IntervalMeans(Ranks())
    resumed.load_state_dict(json.loads(saved))
    assert add(resumed, steps(7)[4:]).take() == undisturbed


def test_another_number_of_processes_takes_up_what_all_of_them_had() -> None:
    alone = add(IntervalMeans(Ranks()), steps(4))
    (other,) = alone.state_dict()["sums"]
    state = add(IntervalMeans(Ranks(size=2, others=[other])), steps(4)).state_dict()
    one, three = IntervalMeans(Ranks()), IntervalMeans(Ranks(rank=2, size=3))
    one.load_state_dict(state)
    three.load_state_dict(state)
    assert one.take() == alone.take()  # of twice the same samples
    assert three.take() == {}


@pytest.mark.parametrize(
    "state", [{}, {"tags": [["loss"]], "sums": [[]]}, {"tags": [["loss"]], "sums": [[[1.0]]]}, {"sums": 1}]
)
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="sums|iterable"):
        IntervalMeans(Ranks()).load_state_dict(state)
