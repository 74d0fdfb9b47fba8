"""What the operating system does for processes that start others."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel send ``by`` to this process when its parent is gone, were that even killed (``preexec_fn``)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
