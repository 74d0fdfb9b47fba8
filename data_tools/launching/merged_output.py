"""What several processes that share one output print and report, shown as if one process did.

:meth:`MergedOutput.receive` takes what they write to standard error; each line is printed once, whichever process
writes it first. Their progress comes as files of JSON lines in a folder (:mod:`.progress`), of which
:meth:`MergedOutput.show_progress` draws one bar.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .progress import draw_bar


@dataclass
class _Report:
    """What one process last reported of one step, see :mod:`.progress`; ``first`` was present before its own units."""

    first: int
    present: int
    own: int


class MergedOutput:
    """Prints to standard error what several processes, known by number, print and report.

    Args:
        folder: where they report their progress; None if they do not.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._unfinished: dict[int, bytes] = {}  # of each process: the line that it has not ended yet
        self._printed: dict[str, int] = {}  # line: which process wrote it first
        self._read: dict[Path, int] = {}  # bytes of each file of reports
        self._steps: dict[str, dict[Path, _Report]] = {}  # in the order in which they were begun
        self._bar: tqdm | None = None

    def receive(self, number: int, data: bytes) -> None:
        """Take what process ``number`` wrote next."""
        *lines, self._unfinished[number] = re.split(rb"[\r\n]+", self._unfinished.get(number, b"") + data)
        for line in lines:
            text = line.decode(errors="replace")
            if text.strip() and self._printed.setdefault(text, number) == number:
                self.print_line(text)

    def end(self, number: int) -> None:
        """Print what process ``number``, which has ended, wrote without an end of line."""
        self.receive(number, b"\n")

    def print_line(self, text: str) -> None:
        """Print ``text`` above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def show_progress(self) -> None:
        """Read what the processes have reported since the last call, and draw the newest step."""
        if self._folder is None:
            return
        for file in sorted(self._folder.glob("*.jsonl")):
            with file.open("rb") as stream:
                stream.seek(self._read.get(file, 0))
                data = stream.read()
            whole, newline, _ = data.rpartition(b"\n")
            self._read[file] = self._read.get(file, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                self._take_report(file, json.loads(line))

    def close(self) -> None:
        """Draw the last reports and leave the bar as it is."""
        self.show_progress()
        self._close_bar()

    def _take_report(self, file: Path, value: dict) -> None:
        if value["step"] not in self._steps:
            self._close_bar()
            self._bar = draw_bar(value["total"], value["step"], value["unit"], value["present"])
        reports = self._steps.setdefault(value["step"], {})
        report = reports.setdefault(file, _Report(value["present"], 0, 0))
        report.present, report.own = value["present"], value["own"]
        if not report.own:
            report.first = report.present
        if self._bar is not None and value["step"] == next(reversed(self._steps)):
            self._bar.update(max(0, _done(list(reports.values()), value["total"]) - self._bar.n))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _done(reports: list[_Report], total: int | None) -> int:
    """Return how many units are done: those present at the beginning and what all processes have finished since."""
    together = min(report.first for report in reports) + sum(report.own for report in reports)
    return max(together if total is None else min(together, total), *(report.present for report in reports))
