"""Requests to stop: SIGUSR1, SIGUSR2 or SIGTERM, sent by SLURM before a time limit or preemption, by the user, or by
the kernel when the launcher has died; and Ctrl-C.

    end_at_ctrl_c(run)  # as long as there is nothing to save
    stop_request = StopRequest()
    stop_request.watch_ctrl_c(run)  # from the first step on
    if stop_request:
        print(stop_request.signal.name)

The handler only stores the signal. The loop reads it in every step, and all ranks save and stop together; saving inside
the handler of one rank would deadlock. A second Ctrl-C ends the process at once.
"""

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from mmldm_scale.cluster import requeue, slurm
from mmldm_scale.cluster.local_launcher import STORE
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.processes import die_with_parent

WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the run is saved and can be resumed
FIRST_RANK_WAIT = 2.0  # seconds until the end of the first rank ends the others, too
EXIT_INTERRUPTED = 130  # of a process that ended at once at Ctrl-C
WRITE_STACKS = signal.SIGQUIT  # has a loader worker write the stacks of its threads
TORCHRUN_DELAY = 1.0  # seconds in which torchrun hands on a Ctrl-C that the terminal has sent to its ranks as well


class StopRequest:
    """Handles the signals in :data:`WATCHED`; true once one of them, or Ctrl-C, has arrived.

    Attributes:
        signal: the first of them, which decides whether the job is requeued; None: no request.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupted: float | None = None  # when Ctrl-C came, on a clock of seconds
        self._watches_ctrl_c = False
        for number in WATCHED:
            signal.signal(number, self._remember)

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str | None:
        """What the user calls the signal; None: no request."""
        if self.signal is None:
            return None
        return "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name

    def watch_ctrl_c(self, run: Path) -> None:
        """From now on, let Ctrl-C request a stop, too; a second one ends this process at once, unsaved.

        The first rank prints what happens to ``run``.
        """
        if not self._watches_ctrl_c:
            self._watches_ctrl_c = True
            _handle_ctrl_c(lambda: self._interrupt(run))

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)

    def _interrupt(self, run: Path) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self.signal = self.signal or signal.SIGINT
            _print("Ctrl-C: saving and stopping at the end of the next step; a second Ctrl-C ends at once, unsaved")
        elif now - self._interrupted > _repeat_time():
            _end(f"ended at once by a second Ctrl-C; {_saved(run)}")


def end_at_ctrl_c(run: Path) -> None:
    """Let Ctrl-C end this process at once, with one line: there is nothing to save before the first step has ended."""
    _handle_ctrl_c(lambda: _end(f"interrupted before the first step ended; {_saved(run)}"))


def restore_handlers() -> None:
    """Restore the default handlers of the watched signals: from now on these end the process at once."""
    for number in (*WATCHED, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _handle_ctrl_c(handle: Callable[[], None]) -> None:
    """Have this process, and no child forked from it, call ``handle`` at Ctrl-C; a job that ignores it still does."""
    process = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handle()

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _repeat_time() -> float:
    """Return for how many seconds after a Ctrl-C another SIGINT is the same one, handed on by the launcher.

    Ours counts them itself: it kills the ranks at the second one.
    """
    if STORE in os.environ:
        return math.inf
    return TORCHRUN_DELAY if "TORCHELASTIC_RUN_ID" in os.environ else 0.0


def _saved(run: Path) -> str:
    newest = max(find_checkpoints(run), default=None)
    return f"{run}: {'nothing is saved yet' if newest is None else f'saved up to {newest:,} samples'}"


def _print(line: str) -> None:
    """Print ``line`` on the first rank: not by ``print``, whose buffer the handler may have interrupted."""
    if slurm.rank() == 0:
        os.write(2, f"mmldm: {line}\n".encode())


def _end(line: str) -> None:
    """End this process with ``line``: not by an exception, which libraries would catch while they are imported.

    Another rank than the first prints it, too, if it is still there after a while: it alone was interrupted.
    """
    _print(line)
    if slurm.rank():
        time.sleep(FIRST_RANK_WAIT)
        os.write(2, f"mmldm: rank {slurm.rank()} was {line}\n".encode())
    requeue.report_exit_status(EXIT_INTERRUPTED)
    os._exit(EXIT_INTERRUPTED)


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
