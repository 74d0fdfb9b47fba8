"""Exceptions whose message is shown to the user in one line, without a traceback.

Raise :class:`UserError` when an input, a path or an option is wrong, and :class:`Outage` when a file system or another
process fails during a run. The command line prints the message and exits with ``status``. Any other exception is a
programming error and keeps its traceback.
"""


class UserError(Exception):
    """An input or a setting is wrong. The message says in one line what, where, and what is allowed."""

    status = 2


class Outage(UserError):
    """A file system or another process of the run failed. The next attempt may succeed, so a job is queued again."""

    status = 74  # EX_IOERR of sysexits.h


class LostContact(Exception):
    """Another rank is gone or does not answer. This rank cannot know why; that rank or the launcher prints it."""
