"""The one exception that stands for the user's mistake.

Raise :class:`UserError` where an input, a path or an option cannot work: the command line shows its message as one
line and exits with status 2. Every other exception is ours and keeps its traceback.
"""


class UserError(Exception):
    """Says in one line what is wrong, where, and what would fit."""
