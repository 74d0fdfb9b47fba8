"""``runs/NAME/log.jsonl``: one JSON object a logged step, and how much of a run's time came to something.

Each record holds "samples_seen", the Unix times "time", "time_of_start" (when the process that logged it began its
first step) and "time_of_first_start" (when the run's first process did), and the scalars by tag. A run that is carried
on drops the records beyond its checkpoint, so that what is there is what the run stands on.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
START, FIRST_START = "time_of_start", "time_of_first_start"
STANDING = "time/"  # tags that begin so: seconds since the last record in which training stood still for something
Record = dict[str, Any]


def parse(line: str) -> Record | None:
    """Return the record that ``line`` is; None if it is none: a killed process leaves at most one half line."""
    try:
        record = json.loads(line)
        times = [value for key, value in record.items() if key.startswith("time")]
        whole = all(map(math.isfinite, [record["samples_seen"], record["time"], *times]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return record if whole else None


def read(run: Path) -> Iterator[Record]:
    """Yield the records of ``run`` in order; none if it has logged nothing."""
    file = run / LOG
    if file.exists():
        yield from filter(None, map(parse, file.read_text(errors="replace").splitlines()))


class Goodput:
    """The share of a run's time that it stands on: that of training steps which no restart has undone.

    The whole is the time from the first start of the run to its last record. Useful is, of each record, the time since
    the one before it, or since its process began if that is later, less what training stood still for (validation,
    previews, saving). So steps that a killed process had done since its checkpoint count as lost, and so does the time
    in which a run waits in the queue, starts and loads.
    """

    def __init__(self) -> None:
        self._first, self._last, self._useful = math.inf, -math.inf, 0.0

    def add(self, record: Record) -> None:
        """Count the next record of the run."""
        now, start = record["time"], record.get(START, -math.inf)
        since = max(start, self._last)
        if since > -math.inf:
            standing = sum(value for tag, value in record.items() if tag.startswith(STANDING))
            self._useful += max(0.0, now - since - standing)
        self._first = min(self._first, record.get(FIRST_START, now))
        self._last = max(self._last, now)

    @property
    def share(self) -> float:
        """Useful time over the whole, in 0..1; 0 before any time has passed."""
        whole = self._last - self._first
        return min(1.0, self._useful / whole) if whole > 0 else 0.0
