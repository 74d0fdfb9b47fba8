"""``runs/NAME/log.jsonl``: one JSON object for each logged step; and goodput, the useful share of a run's time.

Each record holds "samples_seen", the Unix times "time", "time_of_start" (when the process that logged it began its
first step) and "time_of_first_start" (when the run's first process did), and scalars by tag. A run that resumes drops
the records after its checkpoint, so the log holds each step once.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
START, FIRST_START = "time_of_start", "time_of_first_start"
PAUSES = "time/"  # prefix of tags: seconds since the last record in which training paused for validation, saving, …
Record = dict[str, Any]


def parse(line: str) -> Record | None:
    """Return the record in ``line``; None if it is incomplete, as a killed process may leave the last line."""
    try:
        record: Record = json.loads(line)
        times = [value for key, value in record.items() if key.startswith("time")]
        complete = all(map(math.isfinite, [record["samples_seen"], record["time"], *times]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return record if complete else None


def read(run: Path) -> Iterator[Record]:
    """Yield the records of ``run`` in order; none if it has logged nothing."""
    file = run / LOG
    if file.exists():
        yield from filter(None, map(parse, file.read_text(errors="replace").splitlines()))


class Goodput:
    """The share of a run's wall-clock time spent on training steps that were not lost.

    The total is the time from the run's first start to its last record. Useful is, for each record, the time since the
    previous record, or since its process started if that is later, minus the pauses (validation, previews, saving).
    Time lost: steps that a killed process had done since its checkpoint, and the time in which a run is queued, starts
    and loads.
    """

    def __init__(self) -> None:
        self._first, self._last, self._useful = math.inf, -math.inf, 0.0

    def add(self, record: Record) -> None:
        """Add the next record of the run."""
        now: float = record["time"]
        start: float = record.get(START, -math.inf)
        since = max(start, self._last)
        if since > -math.inf:
            pauses = sum(value for tag, value in record.items() if tag.startswith(PAUSES))
            self._useful += max(0.0, now - since - pauses)
        self._first = min(self._first, record.get(FIRST_START, now))
        self._last = max(self._last, now)

    @property
    def share(self) -> float:
        """Useful time over total time, in 0..1; 0 before any time has passed."""
        total = self._last - self._first
        return min(1.0, self._useful / total) if total > 0 else 0.0
