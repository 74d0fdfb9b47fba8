"""Calls a function as a user who may not read or write a folder, since root may."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534  # user and group


def without_rights(call: Callable[[], int], folder: Path) -> int:
    """Return what ``call()`` returns in a process without any right to ``folder``, which lies in pytest's own."""
    for parent in [path for path in folder.parents if "pytest-of-" in str(path)]:  # pytest makes them private
        parent.chmod(0o755)
    folder.chmod(0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            status = call()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    folder.chmod(0o755)
    return status
