"""The contrastive loss, in one process and in several real ones."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
import torch.nn.functional as F

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.contrastive import contrastive_group, contrastive_losses

CLIPS, WIDTH = 8, 5


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return clips (CLIPS, 6), weights (2, 6, WIDTH) of two linear heads and a temperature (), all float64."""
    random = torch.Generator().manual_seed(0)
    clips = torch.randn(CLIPS, 6, generator=random, dtype=torch.float64)
    weights = torch.randn(2, 6, WIDTH, generator=random, dtype=torch.float64)
    return clips, weights.requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)


def losses(clips: torch.Tensor, weights: torch.Tensor, temperature: torch.Tensor, group: int) -> torch.Tensor:
    audio, video = (F.normalize(clips @ weight, dim=1) for weight in weights)
    return contrastive_losses(audio, video, temperature, group)


def test_the_loss_is_equation_1():
    clips, weights, temperature = problem()
    audio, video = (F.normalize(clips @ weight, dim=1).tolist() for weight in weights)

    def cross_entropy(queries: list, keys: list, i: int, members: range) -> float:
        scores = [math.exp(3.0 * sum(a * b for a, b in zip(queries[i], keys[j], strict=True))) for j in members]
        return -math.log(scores[i - members.start] / sum(scores))

    for group in (CLIPS, 4, 2):
        for i, loss in enumerate(losses(clips, weights, temperature, group).tolist()):
            members = range(i - i % group, i - i % group + group)  # of clip i's group
            expected = 0.5 * (cross_entropy(audio, video, i, members) + cross_entropy(video, audio, i, members))
            assert loss == pytest.approx(expected, abs=1e-12)


def train(rank: int, count: int, folder: Path, group: int) -> None:
    """In process ``rank`` of ``count``, write the losses of its clips and the gradients averaged over processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    clips, weights, temperature = problem()
    own = losses(clips.chunk(count)[rank], weights, temperature, group)
    own.mean().backward()
    for gradient in (weights.grad, temperature.grad):
        dist.all_reduce(gradient)
        gradient /= count
    torch.save([own.detach(), weights.grad, temperature.grad], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("count", "group"), [(2, CLIPS), (4, 4)])
def test_losses_and_gradients_do_not_depend_on_the_number_of_processes(tmp_path, count, group):
    processes.spawn(train, (count, tmp_path, group), nprocs=count)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    clips, weights, temperature = problem()
    expected = losses(clips, weights, temperature, group)
    expected.mean().backward()
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), expected.detach(), rtol=0, atol=1e-12)
    for part in parts:
        torch.testing.assert_close(part[1], weights.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(part[2], temperature.grad, rtol=0, atol=1e-12)


def config(group: int, global_batch: int = 8, micro_batch: int = 8) -> AutoencoderTraining:
    batches = {"global_batch": global_batch, "micro_batch": micro_batch}
    intervals = dict.fromkeys(("total_samples", "log_every", "checkpoint_every", "preview_every"), global_batch)
    return AutoencoderTraining(shards=["x"], contrastive_batch=group, training=TrainingConfig(**batches, **intervals))


def test_groups_divide_the_clips_of_a_micro_step():
    assert contrastive_group(config(0)) == 8
    assert contrastive_group(config(4)) == 4
    with pytest.raises(
        UserError, match=r": 8 .*training.micro_batch=2 .*; use training.micro_batch=8 or contrastive_b"
    ):
        contrastive_group(config(0, micro_batch=2))
    with pytest.raises(UserError, match="contrastive_batch: 3 .*; use contrastive_batch=8"):
        contrastive_group(config(3))
    with pytest.raises(UserError, match="contrastive_batch: 1 .*; use contrastive_weight=0"):
        contrastive_group(config(0, 1, 1))
