"""The loader: global positions in, micro-batches of this rank out.

Global batch ``k`` is always positions ``[k·B, (k+1)·B)``, whatever the number of processes, micro-batches or workers;
resuming is starting the count at ``samples_seen``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader

from mmldm_scale.training.signals import prepare_worker
from mmldm_scale.training.task import Dataset


@dataclass(frozen=True)
class MicroBatches:
    """The positions of this rank's micro-batches from ``samples_seen`` to ``total_samples``, in order."""

    samples_seen: int
    total_samples: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.samples_seen, self.total_samples, self.global_batch):
            for micro in range(batch, batch + self.global_batch, self.micro_batch * self.world_size):
                first = micro + self.rank * self.micro_batch
                yield list(range(first, first + self.micro_batch))

    def __len__(self) -> int:
        steps = (self.total_samples - self.samples_seen) // self.global_batch
        return steps * (self.global_batch // (self.micro_batch * self.world_size))


def loader(dataset: Dataset, batches: MicroBatches, workers: int, pin_memory: bool) -> DataLoader:
    """Return the loader of ``batches``; its workers change nothing but speed."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # ours is endless and has no length
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )
