"""Writing in a background thread of each rank while training continues, and agreeing on failures.

    writer = AsyncWriter(world, timeout)
    writer.begin(write)  # a thread calls write(world)
    result = writer.wait()

The threads of all ranks (:class:`AsyncWriter`) communicate over a process group of their own, since the main threads
use the trainer's ``World`` at the same time. A rank records its failures (:class:`WriteFailure`) until all ranks
exchange them: if it raised at once, the others would wait for it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar

import torch.distributed as dist

from mmldm_scale.common.atomic_files import full_disk_reason
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.training.engine.distributed import World

REASON_LENGTH = 300  # characters of an error that are sent to the other ranks
Result = TypeVar("Result")


class AsyncWriter(Generic[Result]):
    """A thread that runs one task at a time, the same on every rank; all ranks make one together.

    Args:
        timeout: seconds that a collective of the threads may take.
    """

    def __init__(self, world: World, timeout: float) -> None:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._world = replace(world, control=group)
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # always joined at the interpreter's exit
        self._task: Future[Result] | None = None

    def begin(self, task: Callable[[World], Result]) -> None:
        """Have the thread call ``task(world)`` with its own process group. No other task may be running."""
        assert self._task is None
        self._task = self._thread.submit(task, self._world)

    @property
    def failed(self) -> bool:
        """Whether the task has raised. Ranks may see this at different times, and must agree before acting on it."""
        return self._task is not None and self._task.done() and self._task.exception() is not None

    @property
    def is_busy(self) -> bool:
        """Whether the task is running. Ranks may see its end at different times."""
        return self._task is not None and not self._task.done()

    def wait(self) -> Result | None:
        """Wait for the task, if there is one, and return what it returned or raise what it raised."""
        task, self._task = self._task, None
        return task.result() if task else None

    def close(self) -> None:
        """Wait for the task and end the thread, without raising what the task raised."""
        self._thread.shutdown()
        dist.destroy_process_group(self._world.control)


class WriteFailure:
    """Collects the failures of this rank, and exchanges them with the other ranks."""

    def __init__(self) -> None:
        self._full: str | None = None
        self._error: Exception | None = None

    @contextmanager
    def recorded(self, path: Path) -> Iterator[None]:
        """Record an exception of the block, which writes ``path``, instead of raising it."""
        try:
            yield
        except Exception as error:  # libraries raise different ones for a full disk
            reason = full_disk_reason(error)
            if reason:
                self._full = self._full or f"{path}: {reason}"
            elif isinstance(error, OSError):
                self._record(Outage(f"{error.filename or path}: cannot be written: {error.strerror or error}"))
            else:
                self._record(error)

    def exchange(self, world: World) -> str | None:
        """Return for which file the disk of any rank was full, and how, or None; all ranks call this together.

        Raises:
            Exception: this rank has recorded it.
            UserError: another rank has recorded it, or an Outage that describes an error of another type.
        """
        errors, full = zip(*world.gather((_for_other_ranks(self._error, world.rank), self._full)), strict=True)
        if self._error:
            raise self._error
        for error in filter(None, errors):
            raise error
        return next((text for text in full if text), None)

    def _record(self, error: Exception) -> None:
        self._error = self._error or error


def _for_other_ranks(error: Exception | None, rank: int) -> UserError | None:
    """Return the error that the other ranks raise when ``rank`` raises ``error``."""
    if error is None or isinstance(error, UserError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]
    return Outage(f"process {rank} failed to write the checkpoint: {text}")
