"""Requests to stop: SIGUSR1, SIGUSR2 or SIGTERM, sent by SLURM before a time limit or preemption, by the user, or by
the kernel when the launcher has died.

    stop_request = StopRequest()
    if stop_request:
        print(stop_request.signal.name)

The handler only stores the signal. The loop reads it in every step, and all ranks save and stop together; saving inside
the handler of one rank would deadlock.
"""

import faulthandler
import os
import signal
import threading
from types import FrameType
from typing import BinaryIO

from mmldm_scale.common.processes import die_with_parent

WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the run is saved and can be resumed
WRITE_STACKS = signal.SIGQUIT  # has a loader worker write the stacks of its threads


class StopRequest:
    """Handles the signals in :data:`WATCHED`; true once one of them has arrived.

    Attributes:
        signal: the first of them, which decides whether the job is requeued; None: no request.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in WATCHED:
            signal.signal(number, self._remember)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


def restore_handlers() -> None:
    """Restore the default handlers of the watched signals: from now on these end the process at once."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_DFL)


def prepare_worker(_worker: int, stacks: BinaryIO | None = None) -> None:
    """Set the signal handlers of a loader worker, which inherits the trainer's and also receives SLURM's signals.

    A request to stop does not end the worker, because its batches are needed until the run has saved. It ends when the
    trainer ends, in whatever way, or when the trainer sends SIGTERM. On ``WRITE_STACKS`` it writes the stacks of its
    threads to ``stacks``.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_on_sigterm_from, args=(os.getppid(),), name="signals", daemon=True).start()
    die_with_parent(signal.SIGKILL)
    if stacks:
        faulthandler.register(WRITE_STACKS, file=stacks, all_threads=True)


def _end_on_sigterm_from(trainer: int) -> None:
    """End this process on a SIGTERM that ``trainer`` sent; SLURM's, which goes to every process, is ignored."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
        pass
    os._exit(0)
