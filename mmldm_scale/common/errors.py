"""The exceptions whose message is all that the user is to read: one line, without a traceback.

Raise :class:`UserError` where an input, a path or an option cannot work, and :class:`Outage` where what a run needs
fails under it. The command line shows the message and exits with ``status``. Every other exception is ours and keeps
its traceback.
"""


class UserError(Exception):
    """Says in one line what is wrong, where, and what would fit."""

    status = 2


class Outage(UserError):
    """A file system, or another process of the run, has failed. It may not the next time: a job is queued again."""

    status = 74  # EX_IOERR of sysexits.h
