"""What the operating system does for processes that start others, and how it tells one from another."""

import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import Any

LAUNCHER = "MMLDM_LAUNCHER"  # the environment variable that tells processes which one started them
_PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel send ``by`` to this process when its parent is gone, were that even killed (``preexec_fn``)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def die_with_launcher(by: signal.Signals) -> None:
    """Do so if a parent asked for it, which has put its number under LAUNCHER; if it is gone already, at once."""
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is not None:
        die_with_parent(by)
        if os.getppid() != int(launcher):
            os.kill(os.getpid(), by)


def identity(pid: int) -> dict[str, Any]:
    """Return what tells process ``pid`` of this machine from every other that is, was or will be; {} for a dead one."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
    except (FileNotFoundError, ProcessLookupError):
        return {}
    if status[0] in "ZX":  # dead, and only waiting for its parent to notice
        return {}
    return {**_machine(), "pid": pid, "started": int(status[19])}


def _machine() -> dict[str, str]:
    """Return what tells the process ids seen here from those of another machine, container or boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "processes": os.readlink("/proc/self/ns/pid")}
