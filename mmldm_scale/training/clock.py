"""Intervals by the wall clock, for what must not wait for the next multiple of a number of samples."""

import time


class Clock:
    """An interval of so many ``minutes``, 0: none, that begins when this is made and again with each restart."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Begin the interval again."""
        self._began = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed."""
        return self._seconds > 0 and time.monotonic() - self._began >= self._seconds
