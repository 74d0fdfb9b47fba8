"""The loader: reads the samples at this rank's global positions and returns them as micro-batches.

    positions = MicroBatches(samples_seen, total_samples, global_batch, micro_batch, rank, world_size)
    for batch in load(dataset, positions, workers=4):
        …

Global batch ``k`` consists of positions ``[k·B, (k+1)·B)`` for any number of processes, micro-batches and workers. A
run resumes by counting from ``samples_seen``. Positions run ahead of that count only if the run went back to a
checkpoint and skips data (:class:`mmldm_scale.training.resilience.step_skipping.SkippedRanges`).
"""

import functools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from mmldm_scale.common.errors import UserError
from mmldm_scale.training.resilience.signals import prepare_worker
from mmldm_scale.training.resilience.step_skipping import SkippedRanges
from mmldm_scale.training.trainable import Batch, Dataset

ALIGNMENT = 64  # bytes, torch's own alignment: with another one MKL sums in another order
PREFETCH = 4  # micro-batches that each worker holds in shared memory
SHARED_MEMORY = Path("/dev/shm")  # where torch has it on Linux


@dataclass(frozen=True)
class MicroBatches:
    """The positions of this rank's micro-batches from ``samples_seen`` to ``total_samples``, in order.

    Iterating yields lists of ``micro_batch`` positions; ``len()`` is their number.
    """

    samples_seen: int
    total_samples: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    skipped_data: SkippedRanges = field(default_factory=SkippedRanges)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.samples_seen, self.total_samples, self.global_batch):
            start = self.skipped_data.position(batch)
            for micro in range(start, start + self.global_batch, self.micro_batch * self.world_size):
                first = micro + self.rank * self.micro_batch
                yield list(range(first, first + self.micro_batch))

    def __len__(self) -> int:
        steps = (self.total_samples - self.samples_seen) // self.global_batch
        return steps * (self.global_batch // (self.micro_batch * self.world_size))


def load(
    dataset: Dataset,
    batches: MicroBatches,
    workers: int,
    pin_memory: bool = False,
    timeout: float = 0.0,
    worker_stacks: BinaryIO | None = None,
) -> Iterator[Batch]:
    """Yield the micro-batches at the positions of ``batches``; the number of ``workers`` only changes the speed.

    Args:
        timeout: seconds that a worker may take for a micro-batch; 0: no limit.
        worker_stacks: file to which a worker writes its stacks on ``signals.WRITE_STACKS``.

    Raises:
        UserError: the dataset raised it, in this process or in a worker; shared memory is too small for the workers.
        RuntimeError: a worker died (the message has its process id and the signal) or exceeded ``timeout``.
    """
    loader: DataLoader[Any] = DataLoader(
        _ReturningErrors(dataset),  # type: ignore[arg-type]  # ours is endless and has no length
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0,
        worker_init_fn=functools.partial(prepare_worker, stacks=worker_stacks) if workers else None,
        prefetch_factor=PREFETCH if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch.tensors()


class _ReturningErrors:
    """A dataset that returns UserErrors instead of raising them: a worker would raise them with its own traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitems__(self, positions: Sequence[int]) -> list[Batch] | UserError:
        try:
            if hasattr(self._dataset, "__getitems__"):
                return self._dataset.__getitems__(positions)
            return [self._dataset[position] for position in positions]
        except UserError as error:
            return error


@dataclass(frozen=True)
class _Packed:
    """A micro-batch as one tensor, since each tensor sent between processes needs a file descriptor and a socket."""

    content: Tensor  # (N,) bytes
    layout: list[tuple[str, int, torch.dtype, tuple[int, ...]]]  # of each tensor: name, first byte, dtype, shape

    def tensors(self) -> Batch:
        """Return the tensors by name; they share the memory of ``content``."""
        return {
            name: self.content[first : first + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, first, dtype, shape in self.layout
        }

    def pin_memory(self) -> "_Packed":
        """Return a copy in page-locked memory; the DataLoader calls this."""
        return _Packed(self.content.pin_memory(), self.layout)


def _collate(samples: list[Batch] | UserError) -> _Packed | UserError:
    """Stack the tensors of ``samples`` along a new first dimension; an error is returned as it is."""
    if isinstance(samples, UserError):
        return samples
    layout, size = [], 0
    for name, tensor in samples[0].items():
        layout.append((name, size, tensor.dtype, (len(samples), *tensor.shape)))
        size += math.ceil(len(samples) * tensor.nbytes / ALIGNMENT) * ALIGNMENT
    try:
        packed = _Packed(_allocate(size), layout)
    except UserError as error:
        return error
    for name, stacked in packed.tensors().items():
        torch.stack([sample[name] for sample in samples], out=stacked)
    return packed


def _allocate(size: int) -> Tensor:
    """Return ``size`` uninitialised bytes; in a worker they are shared, so that the trainer needs no copy.

    Raises:
        UserError: there is too little shared memory.
    """
    worker = get_worker_info()
    if worker is None:
        return torch.empty(size, dtype=torch.uint8)
    try:
        return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        free, needed = shutil.disk_usage(SHARED_MEMORY).free, shared_bytes(size, worker.num_workers)
        raise UserError(
            f"{SHARED_MEMORY}: has no room for micro-batches: {free / 2**20:.3g} MiB are free, each process "
            f"needs {needed / 2**20:.3g} MiB; enlarge it (in a container: --shm-size) or set training.workers=0"
        ) from None


def shared_bytes(micro_batch: int, workers: int) -> int:
    """Return the shared memory that a process's loader needs for micro-batches of ``micro_batch`` bytes, in bytes."""
    return (workers * PREFETCH + 1) * micro_batch if workers else 0
