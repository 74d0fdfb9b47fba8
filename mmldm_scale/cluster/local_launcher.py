"""``--processes N``: starts N ranks on this machine, without SLURM, hands signals on to them, and waits for them.

    status = run(4, ["train", "dit", …])

The ranks meet in a file in memory that they inherit (:mod:`mmldm_scale.cluster.rendezvous`). So no port is opened for
that, nothing is left on the disk, and the ranks can still save if this process is killed: they receive SIGTERM then.

A stop signal is handed on, and the ranks have all the time that they need to save; a second Ctrl-C kills them. If one
rank fails, the others are ended, and the failure is the last line printed, unless the rank has printed it itself.
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from mmldm_scale.common.processes import LAUNCHER, own_command

COMMAND = "MMLDM_COMMAND"  # environment variable of a rank: the command line of its launcher
STORE = "MMLDM_STORE"  # environment variable of a rank: the descriptor of the file in which the ranks meet
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
STATUSES_OF_SUCCESS = (0, 75)  # 75: saved and stopped, on all ranks together
EXPLAINED_STATUSES = (2, 70, 74, 130, 143)  # of a rank that printed one line (mmldm_scale.cli) or ended as it was told
POLL_INTERVAL = 0.05  # seconds between two looks at the ranks
END_DEADLINE = 15.0  # seconds after the first failure until the ranks that are left are killed


def run(processes: int, arguments: Sequence[str]) -> int:
    """Run ``mmldm`` with ``arguments`` in ``processes`` processes; return the exit status, as :func:`launch`."""
    return launch([*own_command(), *arguments], processes)


def launch(command: Sequence[str], count: int, while_waiting: Callable[[], None] = lambda: None) -> int:
    """Run ``command`` as ``count`` ranks of one run, at least 1, and wait until all have ended.

    A second SIGINT kills the ranks. ``while_waiting`` is called 20 times a second until they have ended.

    Returns: the exit status of the rank that failed first, 128 + the signal's number if a signal ended it. If none
        failed: 75 if the run was saved and stopped, else 0.
    """
    ranks = _Ranks()
    ranks.start(command, count)
    return ranks.wait(while_waiting)


class _Ranks:
    """The ranks; makes this process hand on the signals in :data:`HANDED_ON`, except those that it ignores."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._to_send: list[int] = []  # all signals so far, those that wait for the last rank to be started included
        self._all_started = False
        for number in HANDED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
                signal.signal(number, self._hand_on)

    def start(self, command: Sequence[str], count: int) -> None:
        """Start ``count`` processes; hand on what was received meanwhile."""
        store = os.memfd_create("ranks")
        for rank in range(count):
            environment = _environment(rank, count, store)
            self._processes.append(subprocess.Popen(command, env=environment, pass_fds=[store]))
        os.close(store)
        self._all_started = True
        for number in self._to_send:
            self._send(number)

    def wait(self, while_waiting: Callable[[], None]) -> int:
        """Wait for all ranks, end the others when one fails, print that failure, and return the exit status."""
        failed: int | None = None  # the rank that failed first
        deadline = math.inf
        while None in [process.poll() for process in self._processes]:
            if failed is None:
                failed = self._failed_rank()
                if failed is not None:
                    deadline = time.monotonic() + END_DEADLINE
                    self._send(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            while_waiting()
            time.sleep(POLL_INTERVAL)
        failed = self._failed_rank() if failed is None else failed
        if failed is None:
            return max(process.returncode for process in self._processes)
        self._print_failure(failed)
        status: int = self._processes[failed].returncode
        return status if status > 0 else 128 - status

    def _failed_rank(self) -> int | None:
        """Return the first rank that has ended otherwise than with success."""
        success = (None, *STATUSES_OF_SUCCESS)
        return next((rank for rank, process in enumerate(self._processes) if process.returncode not in success), None)

    def _print_failure(self, rank: int) -> None:
        """Print how ``rank`` ended, unless it has printed that itself."""
        process = self._processes[rank]
        if process.returncode == -signal.SIGKILL and signal.SIGKILL in self._to_send:
            print("mmldm: ended at once by a second Ctrl-C; only complete checkpoints are saved", file=sys.stderr)
            return
        if process.returncode in EXPLAINED_STATUSES:
            return
        end = f"failed with status {process.returncode}"
        if process.returncode < 0:
            end = f"was ended by {signal.Signals(-process.returncode).name}"
        if process.returncode == -signal.SIGKILL:
            end += "; if nobody sent it, the memory was full"
        print(f"mmldm: rank {rank} (pid {process.pid}) {end}", file=sys.stderr, flush=True)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        is_second = number == signal.SIGINT and number in self._to_send
        self._to_send.append(signal.SIGKILL if is_second else number)
        if self._all_started:
            self._send(self._to_send[-1])

    def _send(self, number: int) -> None:
        """Send a signal to the ranks that have not ended."""
        for process in self._processes:
            process.send_signal(number)


def _environment(rank: int, count: int, store: int) -> dict[str, str]:
    """Return the environment of ``rank``, as torchrun would set it; nothing listens at the address."""
    threads = max(1, (os.cpu_count() or 1) // count)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        STORE: str(store),
        LAUNCHER: str(os.getpid()),
        COMMAND: shlex.join(["mmldm", *sys.argv[1:]]),
    }
