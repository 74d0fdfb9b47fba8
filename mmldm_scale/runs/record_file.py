"""A file that records are appended to, which ends no run: while it cannot be written, the records wait in memory.

    file = RecordFile(path, lambda: path.open("ab", buffering=0))
    file.append(b"…\\n")
    file.flush()
    file.close()

It is for logs and events. What must not be lost, such as a checkpoint, is written by
:mod:`mmldm_scale.common.atomic_files`, which raises.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mmldm_scale.common.errors import UserError

MAX_WAITING = 16 << 20  # bytes of records that are held in memory while the file cannot be written


class RecordFile:
    """The records that are appended to ``path``, each of them whole or not at all.

    The first failure is printed in one line, and so is the first success after it. What does not fit into memory by
    then, or is still waiting at the end, is left out; the line has the number of these records.

    Args:
        open_file: opens ``path`` unbuffered, to append; called at the first flush, and again if it raised OSError or
            UserError.
    """

    def __init__(self, path: Path, open_file: Callable[[], BinaryIO]) -> None:
        self._path, self._open = path, open_file
        self._file: BinaryIO | None = None
        self._size = 0  # bytes of the file up to its last whole record
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._problem = ""  # why the last flush failed; empty if it did not
        self._left_out = 0

    def append(self, record: bytes) -> None:
        """Have the next flush write ``record``; leave it out if the file fails and too much is waiting already."""
        if self._problem and self._waiting_bytes + len(record) > MAX_WAITING:
            self._left_out += 1
            return
        self._waiting.append(record)
        self._waiting_bytes += len(record)

    def flush(self) -> None:
        """Write the records that wait; if that fails, they wait for the next call."""
        try:
            self._write()
        except (OSError, UserError) as error:
            if not self._problem:
                self._print(f"cannot be written: {_reason(error)}; the run goes on, and records wait in memory")
            self._problem = _reason(error)
            return
        if self._problem:
            self._print(f"is written again; records left out: {self._left_out:,}")
            self._problem, self._left_out = "", 0

    def close(self) -> None:
        """Write the records that wait, or print how many are lost, and close the file."""
        if self._waiting:
            self.flush()
        if self._problem:
            lost = self._left_out + len(self._waiting)
            self._print(f"records not written: {lost:,} ({self._problem})")
        if self._file:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            self._file = self._open()
            self._size = self._file.tell()
        elif self._problem:
            self._file.truncate(self._size)  # removes the part of a record that the last attempt has written
            self._file.seek(self._size)
        data = b"".join(self._waiting)
        _write(self._file, data)
        self._size += len(data)
        self._waiting, self._waiting_bytes = [], 0

    def _print(self, line: str) -> None:
        tqdm.write(f"{self._path}: {line}", file=sys.stderr)  # on a line of its own, also beside a progress bar


def _reason(error: OSError | UserError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered ``file``, which may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
