"""The loader's positions: the same global batches whatever the processes, and every position once."""

import itertools

import pytest

from mmldm_scale.training.data import MicroBatches


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
