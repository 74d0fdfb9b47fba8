"""Reads the state of a run from its folder: configuration, log, checkpoints, lock, starts and hangs.

``read_summary(folder)`` changes nothing and skips files that are missing or damaged: users look at a run because
something is wrong with it. It imports neither torch nor numpy, so that ``mmldm status`` starts at once.
"""

import bisect
import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import yaml

from mmldm_scale.common import leases
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.runs import evaluations, launches, run_log
from mmldm_scale.runs.launches import Launch

CONFIG = "config.yaml"
SMOOTHING = 10  # maximum number of records in each of the two means that a trend compares
TREND_RECORDS = 10  # records that a log needs for a trend
SILENT_AFTER = 5.0  # a running run is silent after this many times its usual interval between records,
SHORTEST_SILENCE = 60.0  # and at least this many seconds


def find_runs(folder: Path) -> list[Path]:
    """Return ``[folder]`` if it is a run, else the runs in it, at most two levels down."""
    if _is_run(folder):
        return [folder]
    begun = {file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/{CONFIG}")}
    bases = {file.parent.parent for pattern in ("", "*/") for file in folder.glob(f"{pattern}launch-*/{launches.JOBS}")}
    launched = {run for base in bases for run in launches.runs_below(base)}
    return sorted(run for run in begun | launched if not launches.is_launch(run))


def _is_run(folder: Path) -> bool:
    is_begun = (folder / CONFIG).is_file() and not launches.is_launch(folder)
    return is_begun or launches.last_launch(folder) is not None


def finite_number(record: dict[str, Any], key: str) -> float | None:
    """Return ``record[key]`` if it is a finite number, else None."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


class Curve:
    """The last records of a log, and those that were logged a tenth of the run, or of the log's records, earlier.

    Args:
        lines: of the log.
        total: length of the run, in samples.

    Attributes:
        count: number of records.
        recent: the last of them.
        earlier: as many from before; empty if there are fewer than TREND_RECORDS.
    """

    def __init__(self, lines: Sequence[bytes], total: float) -> None:
        self.count = len(lines)
        self.recent: list[run_log.Record] = _records(lines, len(lines), 1)
        self.earlier: list[run_log.Record] = []
        if not self.recent:
            return
        samples_earlier = self.recent[0]["samples_seen"] - total / 10
        end = bisect.bisect_right(lines, samples_earlier, key=_samples_seen)
        size = max(1, min(SMOOTHING, max(TREND_RECORDS // 2, self.count - end), self.count // 2))
        self.recent = _records(lines, self.count, size)
        if self.count >= TREND_RECORDS:
            self.earlier = _records(lines, min(end, self.count - size) if end >= size else self.count - size, size)

    @property
    def last(self) -> run_log.Record:
        """The last record; empty if there is none."""
        return self.recent[-1] if self.recent else {}

    def trend(self, tag: str) -> float | None:
        """Return the relative change of ``tag`` over the last tenth of the run; None without records to compare."""
        recent, earlier = (
            [value for value in (finite_number(record, tag) for record in records) if value is not None]
            for records in (self.recent, self.earlier)
        )
        return fmean(recent) / fmean(earlier) - 1 if recent and earlier and fmean(earlier) else None

    @property
    def distance(self) -> float:
        """Samples between the records that a trend compares."""
        samples: float = self.recent[-1]["samples_seen"] - self.earlier[-1]["samples_seen"]
        return samples

    def rate(self) -> float | None:
        """Return the recent samples per second of wall-clock time, pauses included."""
        same_start = [r for r in self.recent if r.get(run_log.START) == self.last.get(run_log.START)]
        seconds = same_start[-1]["time"] - same_start[0]["time"] if same_start else 0
        if seconds > 0:
            samples: float = same_start[-1]["samples_seen"] - same_start[0]["samples_seen"]
            return samples / seconds
        return finite_number(self.last, "speed/samples_per_second")


class QueuedJob(Protocol):
    """A job in SLURM's queue: its state ("PENDING", …), its nodes, and why it waits."""

    @property
    def state(self) -> str: ...

    @property
    def nodes(self) -> str: ...

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in the run's folder."""

    samples_seen: int
    age: float  # seconds
    size: int | None  # bytes; None if its manifest does not say


@dataclass(frozen=True)
class RunSummary:
    """The state of a run.

    Attributes:
        config: its config.yaml; empty if that cannot be read.
        total_samples: its length; 0 if unknown.
        validation: the records with a validation loss.
        holder: the process that holds the run's lock and whether it seems alive; None if nobody does.
        starts: the records of starts.jsonl, which SLURM jobs write.
        hangs: the folders of hangs, oldest first.
        weights_bytes: size of the newest checkpoint's weights, which are float32.
        launch: the last ``mmldm launch`` of the run, if there was one.
        queue: the run's jobs that SLURM's queue holds, by id; None: the queue is not known.
        evaluated: the records of evaluation.jsonl.
    """

    run: Path
    config: dict[str, Any]
    total_samples: float
    curve: Curve
    validation: Curve
    checkpoints: list[SavedCheckpoint]
    holder: tuple[dict[str, Any], bool] | None
    starts: list[dict[str, Any]]
    hangs: list[Path]
    weights_bytes: int | None
    launch: Launch | None = None
    queue: Mapping[str, QueuedJob] | None = None
    evaluated: Sequence[evaluations.Record] = ()

    @property
    def samples_seen(self) -> float:
        """Samples seen at the last record or checkpoint, whichever is later."""
        logged: float = self.curve.last.get("samples_seen", 0)
        return max([logged, *(checkpoint.samples_seen for checkpoint in self.checkpoints)])

    @property
    def running(self) -> bool:
        """Whether a process that seems alive holds the run's lock."""
        return self.holder is not None and self.holder[1]

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end of the run at the present rate."""
        rate = self.curve.rate()
        return (self.total_samples - self.samples_seen) / rate if rate and self.total_samples else None

    @property
    def silence(self) -> float | None:
        """Seconds since the last record."""
        return time.time() - self.curve.last["time"] if self.curve.last else None

    @property
    def jobs(self) -> list[str]:
        """The ids of the SLURM jobs that may run it: of its last launch, and of its last start."""
        ids = [self.launch.job] if self.launch else []
        return list(dict.fromkeys(ids + [str(start["job"]) for start in self.starts[-1:] if start.get("job")]))

    @property
    def queued(self) -> tuple[str, QueuedJob] | None:
        """The run's job in SLURM's queue and its id, if there is one."""
        return next(((job, (self.queue or {})[job]) for job in self.jobs if job in (self.queue or {})), None)

    @property
    def is_begun(self) -> bool:
        """Whether the run has logged or saved anything."""
        return bool(self.curve.last or self.checkpoints)

    def state(self) -> str:
        """Return the state of the run in one or two words.

        "running", or "silent" without new records for too long; "finished"; "waiting" for SLURM or "starting", if its
        job is in the queue; "submitted" by a launch, if the queue is not known; "not started", if there is only a
        configuration; else "stopped".
        """
        if self.running:
            times = [record["time"] for record in self.curve.recent]
            interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.inf
            limit = max(SHORTEST_SILENCE, SILENT_AFTER * interval)
            return "silent" if self.silence and self.silence > limit else "running"
        if self.total_samples and self.samples_seen >= self.total_samples:
            return "finished"
        if self.queued:
            return "waiting" if self.queued[1].state == "PENDING" else "starting"
        if not self.is_begun:
            return "submitted" if self.launch and not self.starts and self.queue is None else "not started"
        return "stopped"

    def section(self, key: str) -> dict[str, Any]:
        """Return the mapping ``key`` of the configuration; empty if it has none."""
        section = self.config.get(key)
        return section if isinstance(section, dict) else {}


def read_summary(run: Path) -> RunSummary:
    """Return the state of the run in the folder ``run``."""
    config: dict[str, Any] = {}
    launch = launches.last_launch(run)
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        file = run / CONFIG
        content = yaml.safe_load((launch.config if launch and not file.exists() else file).read_text("utf-8"))
        config = content if isinstance(content, dict) else {}
    training = config.get("training")
    total = (finite_number(training, "total_samples") if isinstance(training, dict) else None) or 0.0
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = (run / run_log.LOG).read_bytes().splitlines()
    last = Curve(lines, total).last
    progress = finite_number(last, "speed/progress")
    if progress:  # the run may have resumed with another length than its config.yaml says
        total = round(last["samples_seen"] / progress)
    holder = None
    with contextlib.suppress(OSError):
        holder = leases.peek(run, "run")
    evaluated: list[evaluations.Record] = []
    with contextlib.suppress(OSError):
        evaluated = evaluations.read(run)
    return RunSummary(
        run=run,
        config=config,
        total_samples=total,
        curve=Curve(lines, total),
        validation=Curve([line for line in lines if b'"validation/loss"' in line], total),
        checkpoints=_checkpoints(run),
        holder=holder,
        starts=_starts(run),
        hangs=sorted(run.glob("hangs/*")),
        weights_bytes=_weights_bytes(run),
        launch=launch,
        evaluated=evaluated,
    )


def _records(lines: Sequence[bytes], end: int, count: int) -> list[run_log.Record]:
    """Return the last ``count`` records before line ``end``, in order."""
    records: list[run_log.Record] = []
    while end > 0 and len(records) < count:
        end -= 1
        record = run_log.parse(lines[end].decode(errors="replace"))
        records += [record] if record else []
    return records[::-1]


def _samples_seen(line: bytes) -> float:
    record = run_log.parse(line.decode(errors="replace"))
    return record["samples_seen"] if record else -math.inf


def _checkpoints(run: Path) -> list[SavedCheckpoint]:
    checkpoints = []
    for samples_seen, folder in find_checkpoints(run).items():
        manifest = folder / "manifest.json"
        with contextlib.suppress(OSError):
            age = time.time() - manifest.stat().st_mtime
            checkpoints.append(SavedCheckpoint(samples_seen, age, _size(manifest)))
    return checkpoints


def _size(manifest: Path) -> int | None:
    try:
        return sum(int(size) for size, _ in json.loads(manifest.read_text())["files"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _weights_bytes(run: Path) -> int | None:
    for folder in reversed(find_checkpoints(run).values()):
        with contextlib.suppress(OSError):
            return (folder / "weights/model.safetensors").stat().st_size
    return None


def _starts(run: Path) -> list[dict[str, Any]]:
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (run / "starts.jsonl").read_text(errors="replace").splitlines()
    return [record for record in map(_parse_json, lines) if isinstance(record, dict)]


def _parse_json(line: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return None
