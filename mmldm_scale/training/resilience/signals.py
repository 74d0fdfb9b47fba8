"""The stop_request to stop: SIGUSR1, SIGUSR2 or SIGTERM, from SLURM before a time limit or a preemption, or from a
person.

The handler only remembers the signal. The loop asks for it between two steps and all ranks act together there; saving
inside a handler on one rank would deadlock.
"""

import faulthandler
import os
import signal
import threading
from types import FrameType
from typing import BinaryIO

from mmldm_scale.common.processes import die_with_parent

WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
EXIT_STOPPED = 75  # EX_TEMPFAIL: the run is saved and wants to be carried on
WRITE_STACKS = signal.SIGQUIT  # to a loader worker


class StopRequest:
    """Watches for the signals that ask a run to save and stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in WATCHED:
            signal.signal(number, self._remember)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)


def restore_handlers() -> None:
    """Give the watched signals their default handlers back: from now on they end the process at once."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_DFL)


def prepare_worker(_worker: int, stacks: BinaryIO | None = None) -> None:
    """Settle the signals of a loader worker, which inherits the trainer's handlers and gets SLURM's signals like it.

    What asks the run to save and stop does not end the worker: its batches are needed until then. It ends with the
    trainer, however that ends, and when the trainer tells it to. At ``WRITE_STACKS`` it writes its threads' stacks.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_told, args=(os.getppid(),), name="signals", daemon=True).start()
    die_with_parent(signal.SIGKILL)
    if stacks:
        faulthandler.register(WRITE_STACKS, file=stacks, all_threads=True)


def _end_when_told(trainer: int) -> None:
    """End this process at the SIGTERM that ``trainer`` sends; it is not SLURM's, which goes to every process."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
        pass
    os._exit(0)
