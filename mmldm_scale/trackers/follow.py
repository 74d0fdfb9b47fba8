"""``mmldm follow``: sends what a run logs to an experiment tracker, while it trains or afterwards.

It only reads what the training writes, so it can neither slow it down nor end it. Everything is sent once: the position
is kept in the run folder (:mod:`mmldm_scale.trackers.position`). A training that resumes from a checkpoint logs the
steps since once more; what was sent of them stays, since no tracker can take it back, and an exact resume repeats it.
"""

import argparse
import itertools
import math
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from mmldm_scale.common import leases
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.runs import run_log
from mmldm_scale.runs.log_reader import LogReader
from mmldm_scale.runs.media_reader import LoggedPreview, MediaReader
from mmldm_scale.runs.summary import CONFIG
from mmldm_scale.trackers.contract import OpenRun, Scalars, TrackedRun, Tracker
from mmldm_scale.trackers.position import FOLDER, Position, open_position, save_position
from mmldm_scale.trackers.table import tracker

BATCH = 100  # records in one call of a tracker
NOTE_EVERY = 30.0  # seconds after which the position is written while there is more to send
RETRY_EVERY = 60.0  # seconds between two attempts while a tracker cannot be reached
NOT_SCALARS = ("samples_seen", "time", run_log.START, run_log.FIRST_START)


def run(args: argparse.Namespace) -> int:
    """Send the run in ``args.folder`` to the tracker ``args.to``; return 0.

    Raises:
        UserError: the tracker is unknown, not installed or refuses; another process follows the run; with ``--once``,
            the folder has no log.
    """
    if not args.every > 0:
        raise UserError(f"--every: {args.every:g} must be above 0 seconds")
    folder, open_run = Path(args.folder), tracker(args.to)
    with _stop_on_signals() as stop:
        first = _first_record(folder, args.once, args.every, stop)
        if first is None:
            return 0
        with leases.Leases(folder) as held, tempfile.TemporaryDirectory() as scratch:
            if not held.take(f"follow_{args.to}"):
                holder, _ = held.rival(f"follow_{args.to}")
                raise UserError(f"{folder}: {leases.describe(holder)} sends it to {args.to} already")
            position = open_position(folder, args.to, args.project, first)
            Follower(folder, args.to, open_run, position, Path(scratch)).follow(args.once, args.every, stop)
    return 0


def _first_record(folder: Path, once: bool, every: float, stop: threading.Event) -> run_log.Record | None:
    """Return the first record of the log, once there is one; None if asked to stop before.

    Until then another start may still replace the configuration.
    """
    waiting = False
    while True:
        first = next(run_log.read(folder), None)
        if first is not None and (folder / CONFIG).is_file():
            return first
        if once:
            raise UserError(f"{folder}: must be a run that has logged something: no {CONFIG} or no record in its log")
        if not waiting:
            _say(f"{folder}: waits for the first record of its training")
            waiting = True
        if stop.wait(every):
            return None


class Follower:
    """Sends one run to one tracker.

    Args:
        name: of the tracker.
        scratch: an empty folder for media.
    """

    def __init__(self, folder: Path, name: str, open_run: OpenRun, position: Position, scratch: Path) -> None:
        self._folder, self._name, self._open_run = folder, name, open_run
        self._position, self._scratch = position, scratch
        self._tracker: Tracker | None = None
        self._problem = ""  # why the last attempt failed; empty if it did not
        self._finished = False  # whether the log ends with the training's last record
        self._behind = False  # whether the log ends before what was sent
        self._sent_records = self._sent_media = 0
        self._noted, self._noted_at = replace(position), time.monotonic()  # what is written, and since when
        self._begin_reading()

    def follow(self, once: bool, every: float, stop: threading.Event) -> None:
        """Send everything new every ``every`` seconds, to the end of the training or until ``stop``.

        An outage is waited for, but not after ``stop``; what is not sent by then, the next call sends.

        Raises:
            UserError: the tracker refuses.
        """
        was_training = True
        while True:
            stopping, training = stop.is_set(), _is_training(self._folder)  # before reading what it wrote until then
            sent = self._send_new(ended=not training) and self._closed(once or stopping, training)
            if stopping or (sent and (once or (self._finished and not training))):
                break
            if was_training and not training and not self._finished:
                _say(f"{self._folder}: nobody trains it; waits until it is resumed")
            was_training = training
            stop.wait(every if sent else max(every, RETRY_EVERY))
        _say(f"{self._name}: sent {self._sent_records:,} records and {self._sent_media:,} media of {self._folder}")

    def _closed(self, last: bool, training: bool) -> bool:
        """Close the tracker's run, if nothing will follow; return whether that was possible."""
        if self._tracker is not None and (last or (self._finished and not training)):
            with self._retried():
                self._tracker.close()
                self._tracker = None
            return not self._problem
        return True

    def _send_new(self, ended: bool) -> bool:
        """Send what is new; return False after an outage.

        Args:
            ended: nobody trains, so that the last preview is complete as it is.
        """
        with self._retried():
            self._send_records(self._log.new())
            for preview in self._media.new(math.inf if ended else self._logged):
                if preview.samples_seen > self._logged:  # records before it were logged since
                    self._send_records(self._log.new())
                self._send_preview(preview)
            self._note(at_once=True)
        if self._problem:
            self._begin_reading()
        return not self._problem

    def _send_records(self, records: Sequence[run_log.Record]) -> None:
        if not records:
            return
        self._logged = records[-1]["samples_seen"]
        self._finished = records[-1].get("speed/progress", 0) >= 1
        tracker, position = self._opened(), self._position
        was_behind, self._behind = self._behind, self._logged < position.samples_seen
        if self._behind and not was_behind:
            _say(
                f"{self._name}: the training went back to {self._logged:,} samples; what it logs again up to "
                f"{position.samples_seen:,} is not sent again"
            )
        new = (_scalars(record) for record in records if record["samples_seen"] > position.samples_seen)
        while batch := list(itertools.islice(new, BATCH)):
            tracker.log(batch)
            position.samples_seen = batch[-1].samples_seen
            self._sent_records += len(batch)
            self._note()

    def _send_preview(self, preview: LoggedPreview) -> None:
        if preview.samples_seen < self._position.preview:
            return
        for medium in preview.media(self._scratch):
            if not self._position.has_medium(medium.samples_seen, medium.tag):
                self._opened().show(medium)
                self._position.add_medium(medium.samples_seen, medium.tag)
                self._sent_media += 1
                self._note()

    def _note(self, at_once: bool = False) -> None:
        """Write the position, if the last time is long ago, once the tracker cannot lose what it was given."""
        if self._tracker is None or self._position == self._noted:
            return
        if at_once or time.monotonic() - self._noted_at > NOTE_EVERY:
            self._tracker.flush()
            save_position(self._folder, self._name, self._position)
            self._noted, self._noted_at = replace(self._position), time.monotonic()

    def _opened(self) -> Tracker:
        """Return the tracker's run, opened if it is not yet."""
        if self._tracker is None:
            folder = self._folder / FOLDER / self._name
            folder.mkdir(parents=True, exist_ok=True)
            position, name = self._position, self._folder.resolve().name
            run = TrackedRun(position.id, name, position.project, _read_config(self._folder), folder)
            self._tracker = self._open_run(run)
            if self._tracker.samples_seen is not None:  # a killed follower may have sent more, or lost what it had
                position.samples_seen = self._tracker.samples_seen
            _say(f"{self._folder} is shown at {self._tracker.place}")
        return self._tracker

    def _begin_reading(self) -> None:
        """Read from the first record on; the position says what of it was sent."""
        self._log, self._media, self._logged = LogReader(self._folder), MediaReader(self._folder), -1

    @contextmanager
    def _retried(self) -> Iterator[None]:
        """Note an outage in the block, and print its first failure and the first success after it."""
        try:
            yield
        except (Outage, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            if not self._problem:
                _say(f"{self._name}: cannot be reached, and is tried again every minute; nothing is lost: {reason}")
            self._problem = reason or type(error).__name__
            return
        if self._problem:
            _say(f"{self._name}: is reached again")
            self._problem = ""


def _scalars(record: run_log.Record) -> Scalars:
    values = {tag: float(value) for tag, value in record.items() if tag not in NOT_SCALARS}
    return Scalars(int(record["samples_seen"]), record["time"], values)


def _is_training(folder: Path) -> bool:
    """Return whether a process that seems alive trains in ``folder``."""
    holder = leases.peek(folder, "run")
    return holder is not None and holder[1]


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.yaml; raise UserError if it cannot be read."""
    try:
        content: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{folder / CONFIG}: must be a configuration, not {type(content).__name__}")
    return content


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM, from a job's script, and the first Ctrl-C set: what is logged by then is sent."""
    stop, before = threading.Event(), dict[int, Any]()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # which alone may set handlers
        before |= {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
