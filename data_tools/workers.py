"""What the decoding processes of data preparation share."""

import os
import signal
from typing import TypeVar

Item = TypeVar("Item")


def default_workers() -> int:
    """Return how many processes decode unless the user says: one for each core that we may use."""
    return len(os.sched_getaffinity(0))


def as_is(item: Item) -> Item:
    """Hand an item on as it is, instead of making tensors of it (a DataLoader's ``collate_fn``)."""
    return item


def quiet(worker: int) -> None:
    """Leave Ctrl-C to the main process (a DataLoader's ``worker_init_fn``)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
