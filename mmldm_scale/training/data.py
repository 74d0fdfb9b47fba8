"""The loader: global positions in, micro-batches of this rank out.

Global batch ``k`` is always positions ``[k·B, (k+1)·B)``, whatever the number of processes, micro-batches or workers;
resuming is starting the count at ``samples_seen``. Only after steps had to be skipped and the run went back are its
positions ahead of its count (:class:`mmldm_scale.training.health.Stretches`).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from mmldm_scale.errors import UserError
from mmldm_scale.training.health import Stretches
from mmldm_scale.training.signals import prepare_worker
from mmldm_scale.training.task import Dataset

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class MicroBatches:
    """The positions of this rank's micro-batches from ``samples_seen`` to ``total_samples``, in order."""

    samples_seen: int
    total_samples: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    left_out: Stretches = field(default_factory=Stretches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.samples_seen, self.total_samples, self.global_batch):
            begin = self.left_out.position(batch)
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
        yield batch


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


def _collate(samples: list[Batch] | UserError) -> Batch | UserError:
    return samples if isinstance(samples, UserError) else default_collate(samples)
