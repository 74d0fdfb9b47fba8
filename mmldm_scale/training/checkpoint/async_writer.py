"""Work that goes on beside training, on all ranks alike, and how they agree on how it went.

Each rank has one thread for it (:class:`AsyncWriter`). The threads meet over a process group of their own, since the
trainer's ``World`` is in use by the main threads at the same time. What keeps a rank from writing is noted
(:class:`WriteFailure`) until they meet: a rank that raised at once would have the others wait for it.
"""

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar

import torch.distributed as dist

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.training.engine.distributed import World

FULL = (errno.ENOSPC, errno.EDQUOT)
Result = TypeVar("Result")


class AsyncWriter(Generic[Result]):
    """A thread that does one task at a time, on every rank the same; all ranks make one together.

    Args:
        timeout: seconds that a rank's thread waits for the others' where they meet.
    """

    def __init__(self, world: World, timeout: float) -> None:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._world = replace(world, control=group)
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # joined at the interpreter's exit, come what may
        self._task: Future[Result] | None = None

    def begin(self, task: Callable[[World], Result]) -> None:
        """Have the thread call ``task`` with the world in which it meets the others'; the one before was waited for."""
        assert self._task is None
        self._task = self._thread.submit(task, self._world)

    @property
    def failed(self) -> bool:
        """Whether the task has raised; ranks may see it at different times, so they have to agree before they act."""
        return self._task is not None and self._task.done() and self._task.exception() is not None

    def wait(self) -> Result | None:
        """Wait for the task, if there is one, and return what it returned or raise what it raised."""
        task, self._task = self._task, None
        return task.result() if task else None

    def close(self) -> None:
        """Wait for the task and end the thread. What the task raises is not raised: another error is on its way."""
        self._thread.shutdown()
        dist.destroy_process_group(self._world.control)


class WriteFailure:
    """What kept this rank from writing, if anything did."""

    def __init__(self) -> None:
        self._full: Path | None = None
        self._error: Exception | None = None

    @contextmanager
    def noted(self, path: Path) -> Iterator[None]:
        """Note what the block raises, where ``path`` is written, and go on."""
        try:
            yield
        except Exception as error:  # raised where all ranks meet; each library has its own for a full disk
            if _is_full(error):
                self._full = self._full or path
            elif isinstance(error, OSError):
                self._note(Outage(f"{error.filename or path}: cannot be written: {error.strerror or error}"))
            else:
                self._note(error)

    def meet(self, world: World) -> Path | None:
        """Return the first file on any rank that there was no room for; all ranks call this together.

        Raises:
            Exception: what this rank has noted.
            UserError: another rank has noted something; of what is no such error there, an Outage tells.
        """
        errors, full = zip(*world.gather((_told(self._error, world.rank), self._full)), strict=True)
        if self._error:
            raise self._error
        for error in filter(None, errors):
            raise error
        return next((path for path in full if path), None)

    def _note(self, error: Exception) -> None:
        self._error = self._error or error


def _told(error: Exception | None, rank: int) -> UserError | None:
    """Return what the other ranks raise where ``rank`` raises ``error``."""
    if error is None or isinstance(error, UserError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Outage(f"process {rank} failed at writing the checkpoint: {text}")


def _is_full(error: BaseException | None) -> bool:
    while error:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in FULL):  # safetensors
            return True
        error = error.__cause__ or error.__context__
    return False
