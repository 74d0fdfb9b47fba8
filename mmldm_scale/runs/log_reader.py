"""Follows ``log.jsonl`` while a training writes it: ``LogReader(run).new()`` returns the records since the last call.

A training that resumes replaces the log by one without the records beyond its checkpoint. The reader notices, since the
line that it read last is no longer where it was, and then returns the records from the first on.
"""

from pathlib import Path

from mmldm_scale.runs import run_log


class LogReader:
    """Reads the log of the run folder ``run``, which need not exist yet."""

    def __init__(self, run: Path) -> None:
        self._file = run / run_log.LOG
        self._end = 0  # bytes of the file that were read
        self._last = b""  # the line before

    def new(self) -> list[run_log.Record]:
        """Return the whole records that were not returned before, in order; all of them if the log was replaced."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._end - len(self._last))
                if file.read(len(self._last)) != self._last:
                    file.seek(0)
                    self._end = 0
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]  # without a line that is being written
        self._end += len(data)
        lines = data.splitlines(keepends=True)
        self._last = lines[-1] if lines else self._last if self._end else b""
        records = (run_log.parse(line.decode(errors="replace")) for line in lines)
        return [record for record in records if record]
