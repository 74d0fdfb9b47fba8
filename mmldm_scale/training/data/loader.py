"""The loader: global positions in, micro-batches of this rank out.

Global batch ``k`` is always positions ``[k·B, (k+1)·B)``, whatever the number of processes, micro-batches or workers;
resuming is starting the count at ``samples_seen``. Only after steps had to be skipped and the run went back are its
positions ahead of its count (:class:`mmldm_scale.training.resilience.step_skipping.SkippedRanges`).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from mmldm_scale.common.errors import UserError
from mmldm_scale.training.resilience.signals import prepare_worker
from mmldm_scale.training.resilience.step_skipping import SkippedRanges
from mmldm_scale.training.trainable import Dataset

Batch = dict[str, Tensor]
ALIGNMENT = 64  # bytes, as torch aligns what it allocates: MKL sums arrays that are aligned otherwise in another order


@dataclass(frozen=True)
class MicroBatches:
    """The positions of this rank's micro-batches from ``samples_seen`` to ``total_samples``, in order."""

    samples_seen: int
    total_samples: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    skipped_data: SkippedRanges = field(default_factory=SkippedRanges)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.samples_seen, self.total_samples, self.global_batch):
            begin = self.skipped_data.position(batch)
            for micro in range(begin, begin + self.global_batch, self.micro_batch * self.world_size):
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
    """Yield the micro-batches at the positions of ``batches``; ``workers`` change nothing but speed.

    Args:
        timeout: seconds that a worker may take over a micro-batch; 0: as long as it likes.
        worker_stacks: where a worker writes its stacks at ``signals.WRITE_STACKS``.

    Raises:
        UserError: what the dataset raised, in whichever process it did.
        RuntimeError: a worker died (the message has its process id and the signal) or took too long.
    """
    loader = DataLoader(
        _Careful(dataset),  # type: ignore[arg-type]  # ours is endless and has no length
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0,
        worker_init_fn=functools.partial(prepare_worker, stacks=worker_stacks) if workers else None,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch.tensors()


class _Careful:
    """A dataset by micro-batch; a user's mistake comes back as it is, where a worker would wrap it in its traceback."""

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
    """A micro-batch as one tensor: between processes, each tensor takes a file descriptor and a socket of its own."""

    content: Tensor  # (N,) bytes
    layout: list[tuple[str, int, torch.dtype, tuple[int, ...]]]  # of each tensor: name, first byte, kind, shape

    def tensors(self) -> Batch:
        """Return the tensors, which share this one's memory."""
        return {
            name: self.content[first : first + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, first, dtype, shape in self.layout
        }

    def pin_memory(self) -> "_Packed":
        """Return a copy in memory that a GPU reads by itself; the loader calls this."""
        return _Packed(self.content.pin_memory(), self.layout)


def _collate(samples: list[Batch] | UserError) -> _Packed | UserError:
    """Stack ``samples``, which hold the same tensors, along a first dimension."""
    if isinstance(samples, UserError):
        return samples
    layout, size = [], 0
    for name, tensor in samples[0].items():
        layout.append((name, size, tensor.dtype, (len(samples), *tensor.shape)))
        size += math.ceil(len(samples) * tensor.nbytes / ALIGNMENT) * ALIGNMENT
    packed = _Packed(_bytes(size), layout)
    for name, stacked in packed.tensors().items():
        torch.stack([sample[name] for sample in samples], out=stacked)
    return packed


def _bytes(size: int) -> Tensor:
    """Return room for ``size`` bytes; in a worker where the training process reads them without another copy."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
