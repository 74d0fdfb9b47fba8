"""The wish to stop: SIGUSR1, SIGUSR2 or SIGTERM, from SLURM before a time limit or a preemption, or from a person.

The handler only remembers the signal. The loop asks for it between two steps and all ranks act together there; saving
inside a handler on one rank would deadlock.
"""

import signal
from types import FrameType

WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
EXIT_STOPPED = 75  # EX_TEMPFAIL: the run is saved and wants to be carried on


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


def prepare_worker(_worker: int) -> None:
    """Settle the signals of a loader worker, which inherits the trainer's handlers and would never end at a SIGTERM."""
    restore_handlers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to answer; it ends its workers
