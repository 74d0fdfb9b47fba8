"""Means of what concerns only some samples of a global batch."""

import json
from pathlib import Path

import pytest
import torch

from mmldm_scale.config import DiTTraining, load
from mmldm_scale.training import means
from mmldm_scale.training.dit import LatentDataset
from tests.training.latent_sets import write_latents

TINY = ["model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"]
SIZES = [f"training.{name}=32" for name in ("total_samples", "global_batch", "log_every", "checkpoint_every")]


def test_a_sample_that_is_not_finite_spoils_only_the_means_in_which_it_counts() -> None:
    losses, time = {"loss/a": torch.tensor([1.0, 2.0, float("nan"), 4.0])}, torch.tensor([0, 249, 250, 999])
    values = means.by_time(losses, time, 1000)
    assert list(values) == [f"loss_by_time/a/{part}" for part in ("0-249", "250-499", "500-749", "750-999")]
    totals = torch.stack([means.sums([value]) for value in values.values()]).flatten().tolist()
    found = means.means(list(values), totals)
    assert found["loss_by_time/a/0-249"] == 1.5
    assert found["loss_by_time/a/250-499"] != found["loss_by_time/a/250-499"]
    assert "loss_by_time/a/500-749" not in found  # nobody was there
    assert found["loss_by_time/a/750-999"] == 4


@pytest.mark.parametrize("steps", [4, 10, 999])
def test_every_timestep_is_in_one_bucket(steps: int) -> None:
    values = means.by_time({"loss/a": torch.ones(steps)}, torch.arange(steps), steps)
    assert sum(value[:, 1] for value in values.values()).tolist() == [1] * steps


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 16), (2, 4)])
def test_losses_by_time_are_means_over_the_samples_of_the_whole_batch(forks, tmp_path, processes, micro_batch) -> None:
    """The network begins with a prediction of zero, so that a sample's first loss is its noise's mean square."""
    latents, run = write_latents(tmp_path / "latents"), tmp_path / "run"
    settings = [f"shards={latents}", "training.precision=fp32", *TINY, *SIZES, f"training.micro_batch={micro_batch}"]
    settings += [f"run={run}", "training.workers=0", "training.preview_every=32"]
    status, output = forks(processes, "train_dit", *settings)
    assert status == 0, output
    dataset = LatentDataset(load(DiTTraining, overrides=settings))
    samples = [dataset[position] for position in range(32)]
    logged = json.loads((Path(run) / "log.jsonl").read_text())
    seen = 0
    for name in ("audio", "video"):
        for first in range(0, 1000, 250):
            there = [s[f"{name}_noise"].square().mean() for s in samples if first <= s["time"] < first + 250]
            seen += len(there)
            assert logged[f"loss_by_time/{name}/{first}-{first + 249}"] == pytest.approx(float(sum(there)) / len(there))
    assert seen == 64
