"""Means of what concerns only some samples of a global batch."""

import pytest
import torch

from mmldm_scale.training.monitoring import metric_means


def test_a_sample_that_is_not_finite_spoils_only_the_means_in_which_it_counts() -> None:
    losses, time = {"loss/a": torch.tensor([1.0, 2.0, float("nan"), 4.0])}, torch.tensor([0, 249, 250, 999])
    values = metric_means.by_time(losses, time, 1000)
    assert list(values) == [f"loss_by_time/a/{part}" for part in ("0-249", "250-499", "500-749", "750-999")]
    totals = torch.stack([metric_means.sums([value]) for value in values.values()]).flatten().tolist()
    found = metric_means.means(list(values), totals)
    assert found["loss_by_time/a/0-249"] == 1.5
    assert found["loss_by_time/a/250-499"] != found["loss_by_time/a/250-499"]
    assert "loss_by_time/a/500-749" not in found  # nobody was there
    assert found["loss_by_time/a/750-999"] == 4


@pytest.mark.parametrize("steps", [4, 10, 999])
def test_every_timestep_is_in_one_bucket(steps: int) -> None:
    values = metric_means.by_time({"loss/a": torch.ones(steps)}, torch.arange(steps), steps)
    assert sum(value[:, 1] for value in values.values()).tolist() == [1] * steps


def test_of_several_values_of_a_sample_each_counts_where_its_own_time_is() -> None:
    time = torch.tensor([[0, 900], [100, 200]])
    values = metric_means.by_time({"loss/a": torch.tensor([[1.0, 2.0], [3.0, 8.0]])}, time, 1000)
    assert values["loss_by_time/a/0-249"].tolist() == [[1, 1], [11, 2]]
    found = metric_means.means(
        list(values), torch.stack([metric_means.sums([value]) for value in values.values()]).flatten().tolist()
    )
    assert found == {"loss_by_time/a/0-249": 4, "loss_by_time/a/750-999": 2}
