"""Functions for worker processes that go wrong in every way; processes import them from here."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from mmldm_scale.common.errors import UserError


class Odd(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def act(what: object) -> object:
    """Return twice a number, this process's id for "pid", or go wrong as ``what`` says."""
    if isinstance(what, int):
        return 2 * what
    return {
        "pid": os.getpid,
        "segfault": lambda: ctypes.string_at(0),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: sys.exit(3),
        "hang": hang,
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "raise": _raise,
        "odd": _raise_odd,
        "function": lambda: lambda: None,  # cannot be pickled
        "large": lambda: bytes(30_000_000),
        "stop while answering": stop_while_answering,
        "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    }[what]()


def hang() -> None:
    """Hang in C with the interpreter's lock held, as a decoder might: no thread or signal handler of ours can run."""
    ctypes.PyDLL(None).sleep(1000)


def stop_while_answering() -> bytes:
    """Return so much that sending it takes a while, and stop the process within that."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return bytes(300_000_000)


def slow(seconds: float) -> float:
    """Return ``seconds`` after that long."""
    time.sleep(seconds)
    return seconds


def once(marker: str) -> str:
    """Die the first time, as if somebody else's need for memory had killed us; the second time succeed."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _raise() -> None:
    raise UserError("the disk is full")


def _raise_odd() -> None:
    raise Odd(1, 2)
