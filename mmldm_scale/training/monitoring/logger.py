"""The logger of a run, on rank 0: TensorBoard, ``log.jsonl``, and one line on the terminal for each record.

    logger = Logger(run, samples_seen, total_samples)
    logger.scalars(samples_seen, {"loss": 0.5})

All values are logged against ``samples_seen``. A run that resumes removes the records beyond its checkpoint, so that a
curve has each step once, however often the run was killed. A disk that is full ends no run: what is logged meanwhile is
written once there is room (:mod:`mmldm_scale.runs.record_file`).
"""

import json
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from torch.utils.tensorboard import summary

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.config import dump
from mmldm_scale.runs import run_log
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.runs.media_log import MediaWriter
from mmldm_scale.runs.record_file import RecordFile
from mmldm_scale.training.monitoring import charts

HPARAM_METRICS = ("loss", "validation/loss")  # what TensorBoard's page of hyper-parameters compares runs by
PRINTED_TAGS = re.compile(r"(validation/)?loss(/.*)?")


class Logger:
    """Logs scalars and media of the run folder ``run`` from ``samples_seen`` on; make it when the first step begins."""

    def __init__(self, run: Path, samples_seen: int, total_samples: int) -> None:
        self._file, self._samples_seen = run / run_log.LOG, samples_seen
        self._log = RecordFile(self._file, self._open)
        self._events = EventFile(run / "tensorboard", samples_seen)
        self._total = total_samples
        self._charted: set[str] = set()
        self._start = (samples_seen, time.monotonic())
        before, now = list(run_log.read(run)), time.time()
        first_starts: list[float] = [record.get(run_log.FIRST_START) or record["time"] for record in before]
        first = min(first_starts, default=now)
        self._times = {run_log.START: now, run_log.FIRST_START: first}
        self._goodput = run_log.Goodput()
        for record in before:
            if record["samples_seen"] <= samples_seen:
                self._goodput.add(record)
        if not before:
            self._log.flush()  # makes the file

    def scalars(self, samples_seen: int, values: dict[str, float]) -> None:
        """Log those of ``values`` that are finite, the run's goodput and progress; print losses and the time left."""
        values = {tag: value for tag, value in values.items() if math.isfinite(value)}
        record = {"samples_seen": samples_seen, "time": time.time(), **self._times, **values}
        self._goodput.add(record)
        values = {**values, "speed/goodput": self._goodput.share, "speed/progress": samples_seen / self._total}
        for tag, value in values.items():
            self._events.add(summary.scalar(tag, value), samples_seen)
        if not values.keys() <= self._charted:  # of the first record, and of the first one with a validation
            self._charted |= values.keys()
            self._events.add(summary.custom_scalars(charts.layout(self._charted)), samples_seen)
        self._events.flush()
        self._log.append(json.dumps(record | values).encode() + b"\n")
        self._log.flush()
        self.show(samples_seen, values)

    def configuration(self, config: object) -> None:
        """Show ``config`` in TensorBoard: as hyper-parameters, to compare runs by, and as text."""
        text = dump(config)
        settings = dict(_settings(yaml.safe_load(text)))
        for content in summary.hparams(settings, dict.fromkeys(HPARAM_METRICS, 0.0)):
            self._events.add(content, self._samples_seen)
        block = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's way to show a text as it is
        self._events.add(summary.text("configuration", block), self._samples_seen)
        self._events.flush()

    def media(self, samples_seen: int) -> MediaWriter:
        """Return the writer for a preview at ``samples_seen``."""
        return MediaWriter(self._events, samples_seen)

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        self._events.close()
        self._log.close()

    def _open(self) -> BinaryIO:
        """Open ``log.jsonl`` without the records beyond the start.

        This waits for the first new record: until then only the old ones may hold the time of the run's first start.
        """
        _remove_records_after(self._file, self._samples_seen)
        return self._file.open("ab", buffering=0)

    def show(self, samples_seen: int, values: dict[str, float]) -> None:
        """Print the losses among ``values``, the speed if it is among them, and the time left; log nothing."""
        start, began = self._start
        rate = (samples_seen - start) / max(time.monotonic() - began, 1e-9)
        left = (self._total - samples_seen) / rate if rate else float("inf")
        losses = " ".join(f"{tag} {value:.4f}" for tag, value in values.items() if PRINTED_TAGS.fullmatch(tag))
        speed = values.get("speed/samples_per_second")
        print(
            f"{samples_seen:,}/{self._total:,} samples  {losses}  "
            f"{'' if speed is None else f'{speed:.1f}/s  '}{left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def _settings(tree: Any, prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield the values in a configuration's nested mappings by their dotted keys; lists and null become texts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _remove_records_after(log: Path, samples_seen: int) -> None:
    """Remove the records of ``log`` beyond ``samples_seen``, and an incomplete last line."""
    if not log.exists():
        return
    lines = log.read_text(errors="replace").splitlines()
    records = zip(lines, map(run_log.parse, lines), strict=True)
    remaining = [line + "\n" for line, record in records if record and record["samples_seen"] <= samples_seen]
    write_whole(log, "".join(remaining).encode())
