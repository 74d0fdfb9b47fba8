"""Exceptions whose message is shown to the user in one line, without a traceback.

Raise :class:`UserError` when an input, a path or an option is wrong, and :class:`Outage` when a file system or another
process fails during a run. The command line prints the message and exits with ``status``, also if the file system
refuses a path (:func:`refused_paths`). Any other exception is a programming error and keeps its traceback.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

REFUSALS = {  # errors of the operating system that are about the path itself and who may use it
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class UserError(Exception):
    """An input or a setting is wrong. The message says in one line what, where, and what is allowed."""

    status = 2


class Outage(UserError):
    """A file system or another process of the run failed. The next attempt may succeed, so a job is queued again."""

    status = 74  # EX_IOERR of sysexits.h


class LostContact(Exception):
    """Another rank is gone or does not answer. This rank cannot know why; that rank or the launcher prints it."""


@contextmanager
def refused_paths() -> Iterator[None]:
    """Turn an error of the block about a path that the file system refuses into a UserError: path and reason.

    An error that names no path, or is not in :data:`REFUSALS`, passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS or not isinstance(error.filename, str | bytes):
            raise
        raise UserError(f"{os.fsdecode(error.filename)}: {error.strerror}") from None
