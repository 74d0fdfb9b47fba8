"""Linux process control: what a command begins with, children that end with their parent, identities of processes."""

import contextlib
import ctypes
import io
import multiprocessing.util
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mmldm_scale.common.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
LAUNCHER = "MMLDM_LAUNCHER"  # environment variable in which a launcher passes its process id to its children
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SOCKET_PATH = 107  # bytes that Linux allows for the path of a Unix socket
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  # what multiprocessing adds to the folder for temporary files
READER_GONE = 128 + signal.SIGPIPE  # exit status of a command whose output nobody reads any more, as in a shell
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare_command() -> None:
    """Make a command work under a long TMPDIR and in any locale; call this first.

    Raises:
        UserError: there is no folder for temporary files, or none for sockets.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python does for standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    shorten_socket_paths()


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Flush standard output at the end of the block: a reader that is gone raises BrokenPipeError here, not later."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def end_quietly_without_reader() -> bool:
    """Return whether nobody reads this process's output any more (``| head``); then discard what is left of it."""
    poll = select.poll()
    for number in (1, 2):  # standard output and standard error
        poll.register(number, 0)  # POLLERR, which a pipe without a reader has, is always reported
    gone = [number for number, events in poll.poll(0) if events & select.POLLERR]
    for number in gone:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)
    return bool(gone)


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel send signal ``by`` to this process when its parent ends, even by SIGKILL (for ``preexec_fn``)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def follow_launcher() -> None:
    """Make this process, if it is a rank that our launcher or torchrun started, end as the launcher wants it to.

    If the launcher ends, in whatever way, the rank receives SIGTERM. Of several SIGINTs only the first raises
    KeyboardInterrupt: Ctrl-C reaches the rank from the terminal and once more from the launcher.
    """
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    die_with_parent(signal.SIGTERM)
    if launcher is not None and os.getppid() != int(launcher):  # it had ended before
        os.kill(os.getpid(), signal.SIGTERM)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt_once)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def own_command() -> list[str]:
    """Return the command line that runs ``mmldm`` from this package; its arguments may follow.

    Unlike after a plain ``python -m``, no module is imported from the current folder.
    """
    python = [sys.executable, "-P", "-m", f"{PACKAGE.name}.cli"]
    folder = PACKAGE.parent
    if folder.name in ("site-packages", "dist-packages"):
        return python
    others = os.environ.get("PYTHONPATH")
    return ["env", f"PYTHONPATH={folder}{os.pathsep + others if others else ''}", *python]


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
