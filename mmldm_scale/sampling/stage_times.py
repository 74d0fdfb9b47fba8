"""How long each stage of a job takes: denoising, decoding and writing, in seconds per sample.

A process that ``mmldm sample --processes`` started writes its times to a file of its own in a folder that the launcher
names in the environment variable :data:`FOLDER`. The launcher adds them up.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STAGES = ("denoise", "decode", "write")
FOLDER = "MMLDM_STAGE_TIMES"  # environment variable: the launcher's folder


class StageTimes:
    """Samples and seconds of each stage.

    Args:
        file: is written whenever a stage has done something; None: nothing is written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._totals = {name: [0, 0.0] for name in STAGES}  # samples, seconds
        self._lock = threading.Lock()

    @classmethod
    def of_process(cls, rank: int) -> "StageTimes":
        """Return those of this process, which its launcher, if any, reads."""
        folder = os.environ.get(FOLDER)
        return cls(Path(folder, f"{rank}.json") if folder else None)

    @classmethod
    def read(cls, folder: Path) -> "StageTimes":
        """Return the sums of the times that processes have written to ``folder``."""
        times = cls()
        for file in folder.glob("*.json"):
            for name, (samples, seconds) in json.loads(file.read_text()).items():
                times._add(name, samples, seconds)
        return times

    @contextlib.contextmanager
    def measured(self, stage: str, samples: int) -> Iterator[None]:
        """Add the time that the block takes for ``samples`` of ``stage``."""
        began = time.monotonic()
        yield
        self._add(stage, samples, time.monotonic() - began)
        self._write()

    def __str__(self) -> str:
        """Return seconds per sample by stage, as "denoise 0.12, decode 0.81, write 0.05"; empty if there are none."""
        with self._lock:
            known = {name: seconds / samples for name, (samples, seconds) in self._totals.items() if samples}
        return ", ".join(f"{name} {each:.2g}" for name, each in known.items())

    def _add(self, stage: str, samples: int, seconds: float) -> None:
        with self._lock:
            total = self._totals[stage]
            total[0] += samples
            total[1] += seconds

    def _write(self) -> None:
        if self._file is None:
            return
        # The launcher has ended, and its folder is gone, or the disk is full: only figures of the progress are lost.
        with self._lock, contextlib.suppress(OSError):
            unfinished = self._file.with_suffix(".tmp")
            unfinished.write_text(json.dumps(self._totals))
            unfinished.replace(self._file)
