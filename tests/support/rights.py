"""Calls a function as a user who may not read or write a folder, since root may."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.support.forked import end_with

NOBODY = 65534  # user and group


def without_rights(call: Callable[[], int], folder: Path) -> int:
    """Return what ``call()`` returns in a process without any right to ``folder``, which lies in pytest's own."""
    for parent in [path for path in folder.parents if "pytest-of-" in str(path)]:  # pytest makes them private
        parent.chmod(0o755)
    folder.chmod(0)

    def call_as_nobody() -> int:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return call()

    child = os.fork() or end_with(call_as_nobody)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    folder.chmod(0o755)
    return status
