"""TensorBoard's files: scalars, pictures and sound of a run.

    events = EventFile(run / "tensorboard")
    events.add(summary.scalar("loss", 0.5), samples_seen)
    events.flush()

The records are TensorBoard's own, and so is the name of the file. Its writer (``SummaryWriter``) is not used: its
thread ends with the first failed write, after which every call raises; it leaves half a record, and readers stop
there; and it opens the file by its name for each write, so it makes another one where a folder was moved away.
"""

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from mmldm_scale.runs.record_file import RecordFile

VERSION = "brain.Event:2"  # of the format


class EventFile:
    """A new event file in ``folder``, whose parent must exist; a disk that fails ends nothing (:class:`RecordFile`).

    Args:
        samples_seen: where the run begins or resumes; TensorBoard drops what other files of the folder hold beyond.
    """

    def __init__(self, folder: Path, samples_seen: int | None = None) -> None:
        self._folder = folder
        self._records = RecordFile(folder, self._open)
        self._writer = RecordWriter(_Appending(self._records))
        self._write(Event(wall_time=time.time(), file_version=VERSION))
        if samples_seen is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=samples_seen + 1, session_log=start))

    def add(self, summary: Any, samples_seen: int) -> None:
        """Have the next flush write ``summary``, one of torch.utils.tensorboard.summary, at ``samples_seen``."""
        self._write(Event(wall_time=time.time(), step=samples_seen, summary=summary))

    def flush(self) -> None:
        """Write what was added."""
        self._records.flush()

    def close(self) -> None:
        """Write what was added, and close the file."""
        self._records.close()

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())

    def _open(self) -> BinaryIO:
        """Make the file under a name that TensorBoard reads, and orders by the second in which it was begun."""
        self._folder.mkdir(exist_ok=True)
        begun = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        for number in itertools.count():
            try:
                return (self._folder / f"{begun}.{number}").open("xb", buffering=0)
            except FileExistsError:  # the run went back to a checkpoint within this second
                continue
        raise AssertionError("count() does not end")


class _Appending:
    """The file of TensorBoard's RecordWriter: each of its writes is a record."""

    def __init__(self, records: RecordFile) -> None:
        self.write = records.append
