"""What a run tells the world: TensorBoard, ``log.jsonl`` and one line on the terminal, from rank 0 alone.

Everything stands against ``samples_seen``. A run that resumes drops what it had logged beyond its checkpoint, so that
a curve shows each step once however often the run was killed.
"""

import json
import re
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.runs import run_log
from mmldm_scale.runs.media_log import MediaWriter
from mmldm_scale.training.checkpoint.async_writer import FULL
from mmldm_scale.training.monitoring import charts

HELD = 1 << 20  # bytes of the log that may wait for room on the disk
SPOKEN = re.compile(r"(validation/)?loss(/.*)?")  # tags that the terminal shows


class Monitor:
    """Scalars and media of one run folder, from ``samples_seen`` on; made when the first step begins."""

    def __init__(self, run: Path, samples_seen: int, total_samples: int) -> None:
        self._file, self._samples_seen, self._log = run / run_log.LOG, samples_seen, None
        self._writer = SummaryWriter(run / "tensorboard", purge_step=samples_seen + 1)
        self._total = total_samples
        self._charted: set[str] = set()
        self._start = (samples_seen, time.monotonic())
        before, now = list(run_log.read(run)), time.time()
        first = min((record.get(run_log.FIRST_START, record["time"]) for record in before), default=now)
        self._times = {run_log.START: now, run_log.FIRST_START: first}
        self._goodput = run_log.Goodput()
        for record in before:
            if record["samples_seen"] <= samples_seen:
                self._goodput.add(record)
        if not before:
            self._open()

    def scalars(self, samples_seen: int, values: dict[str, float]) -> None:
        """Record ``values``, all finite, with the run's goodput, and tell the terminal how far the run is."""
        record = {"samples_seen": samples_seen, "time": time.time(), **self._times, **values}
        self._goodput.add(record)
        values = {**values, "speed/goodput": self._goodput.share, "speed/progress": samples_seen / self._total}
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, samples_seen)
        if not values.keys() <= self._charted:  # a first record, or the first with a validation
            self._charted |= values.keys()
            self._writer.add_custom_scalars(charts.layout(self._charted))
        if self._log is None:
            self._open()
        self._log.write(json.dumps(record | values) + "\n")
        self._flush()
        self._speak(samples_seen, values)

    def media(self, samples_seen: int) -> MediaWriter:
        """Return where a preview at ``samples_seen`` goes."""
        return MediaWriter(self._writer, samples_seen)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()
        if self._log:
            self._log.close()

    def _open(self) -> None:
        """Open the log without the lines beyond the start.

        Not before there is one to write: until then they alone may know when the run began.
        """
        _forget_after(self._file, self._samples_seen)
        self._log = self._file.open("a", buffering=HELD)

    def _flush(self) -> None:
        """Bring lines to the log; what a full disk has no room for is held, for a checkpoint may yet be given up."""
        try:
            self._log.flush()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _speak(self, samples_seen: int, values: dict[str, float]) -> None:
        start, began = self._start
        rate = (samples_seen - start) / max(time.monotonic() - began, 1e-9)
        left = (self._total - samples_seen) / rate if rate else float("inf")
        losses = " ".join(f"{tag} {value:.4f}" for tag, value in values.items() if SPOKEN.fullmatch(tag))
        print(
            f"{samples_seen:,}/{self._total:,} samples  {losses}  {values.get('speed/samples_per_second', 0):.1f}/s  "
            f"{left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def _forget_after(log: Path, samples_seen: int) -> None:
    """Drop the lines of ``log`` beyond ``samples_seen``, and a last line that was cut off."""
    if not log.exists():
        return
    lines = log.read_text(errors="replace").splitlines()
    records = zip(lines, map(run_log.parse, lines), strict=True)
    kept = [line + "\n" for line, record in records if record and record["samples_seen"] <= samples_seen]
    write_whole(log, "".join(kept).encode())
