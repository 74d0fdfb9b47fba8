"""Progress of a long step: a bar in a terminal, a line now and then in a log, or reports to a launcher.

    with Progress(len(videos), "probing", "videos") as bar:
        bar.update()

Where the environment variable :data:`FOLDER` names a folder, nothing is drawn. Lines of JSON go to a file of this
process's own in there: ``{"step": "probing", "unit": "videos", "total": 8, "present": 2, "own": 1}``, with what was
present, whoever made it, when this process last looked, and what this process has finished since the step began.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

FOLDER = "MMLDM_PROGRESS"
REPORT_SECONDS = (0.5, 30.0)  # between two reports: at least and at most; else a hundredth of the time of the step


class Progress:
    """How far a step is, in units; a context manager.

    Attributes:
        n: units that are done.
    """

    def __init__(self, total: int | None, step: str, unit: str, done: int = 0) -> None:
        self.n = done
        self._step, self._unit, self._total = step, unit, total
        self._present, self._own = done, 0
        folder = os.environ.get(FOLDER)
        self._file = Path(folder, f"{socket.gethostname()}-{os.getpid()}.jsonl") if folder else None
        self._began = time.monotonic()
        self._next_report = self._began
        self._bar = None if self._file else draw_bar(total, step, unit, done)
        self._report()

    def update(self, count: int = 1) -> None:
        """Add ``count`` units that this process has finished."""
        self.n += count
        self._own += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next_report:
            self._report()

    def set_present(self, count: int) -> None:
        """Set what is done, whoever did it."""
        changed, self.n, self._present = self._present != count, count, count
        if self._bar is not None:
            self._bar.update(count - self._bar.n)
        elif changed:
            self._report()

    def _report(self) -> None:
        if self._file is None:
            return
        value = {
            "step": self._step,
            "unit": self._unit,
            "total": self._total,
            "present": self._present,
            "own": self._own,
        }
        with contextlib.suppress(OSError), self._file.open("a") as file:  # a launcher that has ended removes the folder
            file.write(json.dumps(value) + "\n")
        elapsed = time.monotonic() - self._began
        self._next_report = time.monotonic() + min(max(elapsed / 100, REPORT_SECONDS[0]), REPORT_SECONDS[1])

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report()
        if self._bar is not None:
            self._bar.close()


def draw_bar(total: int | None, step: str, unit: str, done: int) -> tqdm:
    """Return a bar over ``total`` units (None: not known), ``done`` of them finished already."""
    interval = 0.2 if sys.stderr.isatty() else 10.0  # seconds
    return tqdm(total=total, initial=done, desc=step, unit=f" {unit}", mininterval=interval, maxinterval=interval)
