"""The loader: the same global batches on any number of processes, every position once, every fault reported."""

import itertools
import os
import signal
import time

import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.training.data.loader import MicroBatches, load
from mmldm_scale.training.resilience.signals import WATCHED


def global_batches(world: int, micro: int, start: int = 0) -> list[set[int]]:
    """What all ranks together read between two optimizer steps."""
    ranks = [list(MicroBatches(start, 96, 24, micro, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(MicroBatches(start, 96, 24, micro, 0, world))}
    accumulation = 24 // (micro * world)
    steps = [
        list(itertools.chain(*(p for rank in ranks for p in rank[i : i + accumulation])))
        for i in range(0, len(ranks[0]), accumulation)
    ]
    assert all(len(set(step)) == len(step) for step in steps)
    return [set(step) for step in steps]


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 3), (2, 12), (2, 4), (4, 6), (4, 2), (8, 1)])
def test_global_batches_do_not_depend_on_processes_or_micro_batches(world: int, micro: int) -> None:
    assert global_batches(world, micro) == [set(range(k, k + 24)) for k in (0, 24, 48, 72)]


def test_resuming_reads_exactly_what_is_left() -> None:
    assert global_batches(2, 4, start=48) == global_batches(2, 4)[2:]


class Numbers:
    """Each position's own number; at position 9 it does what ``trouble`` says."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        if position == 9 and self.trouble == "mistake":
            raise UserError("sample 9 is not there")
        if position == 9 and self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if position == 9 and self.trouble == "signals":
            for number in WATCHED:
                os.kill(os.getpid(), number)
        if position == 9 and self.trouble == "hang":
            time.sleep(60)
        return {"number": torch.tensor(position)}


class Batched(Numbers):
    """The same, asked for many at once."""

    def __getitems__(self, positions: list[int]) -> list[dict[str, Tensor]]:
        return [self[position] for position in positions]


BATCHES = MicroBatches(0, 48, 24, 4, 0, 2)


def numbers(dataset: Numbers, workers: int, timeout: float = 20.0) -> list[list[int]]:
    return [batch["number"].tolist() for batch in load(dataset, BATCHES, workers, timeout=timeout)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers, Batched])
def test_micro_batches_come_in_order(dataset, workers) -> None:
    assert numbers(dataset(), workers) == list(BATCHES)


class Odd:
    """Tensors of several kinds and odd lengths, a scalar among them."""

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {
            "flag": torch.tensor(position % 2 == 0),
            "pictures": torch.arange(position, position + 15, dtype=torch.uint8).view(3, 5),
            "noise": torch.full((7,), position / 3),
            "label": torch.tensor(position),
        }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_micro_batch_is_its_samples_stacked(workers) -> None:
    for positions, batch in zip(BATCHES, load(Odd(), BATCHES, workers), strict=True):
        samples = [Odd()[position] for position in positions]
        assert list(batch) == list(samples[0])
        for name, tensor in batch.items():
            expected = torch.stack([sample[name] for sample in samples])
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
            assert tensor.data_ptr() % 64 == 0  # the order of sums depends on it


@pytest.mark.parametrize("workers", [0, 2])
def test_a_user_error_is_the_same_from_any_process(workers) -> None:
    with pytest.raises(UserError) as error:
        numbers(Numbers("mistake"), workers, 0.0)
    assert str(error.value) == "sample 9 is not there"


def test_a_worker_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(?s?\)? \d+\) (is killed by signal|exited unexp)"):
        numbers(Numbers("kill"), 2)


def test_too_little_shared_memory_is_one_line(monkeypatch) -> None:
    """As in a container with Docker's 64 MB; torch's own message, in a worker."""

    def refuse(size: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: Success (0)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", refuse)
    says = (
        r"^/dev/shm: has no room for micro-batches: .* MiB are free, each process needs .* MiB; enlarge it .*--shm-size"
    )
    with pytest.raises(UserError, match=says) as error:
        numbers(Numbers(), 1)
    assert "\n" not in str(error.value)


def test_a_worker_ignores_the_signals_that_slurm_sends_to_every_process() -> None:
    assert numbers(Numbers("signals"), 2) == list(BATCHES)


def test_a_worker_that_hangs_is_reported() -> None:
    with pytest.raises(RuntimeError, match="timed out after 1"):
        numbers(Numbers("hang"), 2, timeout=1.0)
