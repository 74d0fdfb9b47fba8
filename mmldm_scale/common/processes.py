"""Linux process control: child processes that end with their parent, and identities of processes across machines."""

import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import Any

LAUNCHER = "MMLDM_LAUNCHER"  # environment variable in which a launcher passes its process id to its children
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel send signal ``by`` to this process when its parent ends, even by SIGKILL (for ``preexec_fn``)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def die_with_launcher(by: signal.Signals) -> None:
    """Call :func:`die_with_parent` if the parent put its process id into LAUNCHER; send ``by`` now if it has ended."""
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is not None:
        die_with_parent(by)
        if os.getppid() != int(launcher):
            os.kill(os.getpid(), by)


def identity(pid: int) -> dict[str, Any]:
    """Return what distinguishes process ``pid`` from all others, on any machine and at any time; {} if it has ended.

    A process id alone is used again later, and by other machines and containers.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
    except (FileNotFoundError, ProcessLookupError):
        return {}
    if status[0] in "ZX":  # ended, but its parent has not waited for it yet
        return {}
    return {**_machine(), "pid": pid, "started": int(status[19])}


def _machine() -> dict[str, str]:
    """Return what distinguishes the process ids seen here from those of another machine, container or boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "processes": os.readlink("/proc/self/ns/pid")}
