"""Linux process control: what a command begins with, children that end with their parent, identities of processes."""

import ctypes
import io
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError

LAUNCHER = "MMLDM_LAUNCHER"  # environment variable in which a launcher passes its process id to its children
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SOCKET_PATH = 107  # bytes that Linux allows for the path of a Unix socket
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  # what multiprocessing adds to the folder for temporary files
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare_command() -> None:
    """Make a command work under a long TMPDIR and in any locale; call this first.

    Raises:
        UserError: there is no folder for temporary files, or none for sockets.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python does for standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    shorten_socket_paths()


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


def socket_folder() -> str:
    """Return the folder below which this process's Unix sockets are made: that for temporary files, if short enough.

    Raises:
        UserError: there is none.
    """
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError("TMPDIR: no folder for temporary files can be written, neither $TMPDIR nor /tmp") from None
    if len(os.fsencode(usual)) + SOCKET_NAME <= SOCKET_PATH:
        return usual
    for short in SHORT_FOLDERS:
        if os.access(short, os.W_OK | os.X_OK):
            return short
    longest = SOCKET_PATH - SOCKET_NAME
    raise UserError(f"TMPDIR={usual}: is too long for Unix sockets; set a folder of at most {longest} bytes")


def shorten_socket_paths() -> None:
    """Have multiprocessing make the sockets of this process and its children in :func:`socket_folder`.

    Loader workers and fork servers need them. Call this first: multiprocessing makes its folder when it is first used,
    and removes it when the process ends.

    Raises:
        UserError: there is no such folder.
    """
    folder, usual = socket_folder(), tempfile.gettempdir()
    if folder == usual:
        return
    tempfile.tempdir = folder
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = usual


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
