"""How work is cut up for the decoding processes of data preparation, and how they behave."""

import os
import signal
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def default_workers() -> int:
    """Return how many processes decode unless the user says: one for each core that we may use."""
    return len(os.sched_getaffinity(0))


def batched(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return ``items`` in slices of ``size``, the last one shorter if need be."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def as_is(item: Item) -> Item:
    """Hand an item on as it is, instead of making tensors of it (a DataLoader's ``collate_fn``)."""
    return item


def quiet(worker: int) -> None:
    """Leave Ctrl-C to the main process (a DataLoader's ``worker_init_fn``)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
