"""The progress of a sampling job: a bar in a terminal, a line now and then in a log.

    svg: 1,200 of 2,048 samples, 2.31 samples/s, 6 min 7 s left; seconds per sample: denoise 0.12, decode 0.81, …

It counts the samples in the output folder, whoever makes them. So each task of an array shows the whole job. The
seconds are those of this task.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from mmldm_scale.common.durations import duration
from mmldm_scale.sampling.sample_files import SampleFiles
from mmldm_scale.sampling.stage_times import StageTimes

LOOK_SECONDS = 0.5  # between two looks at the output folder, at least
LOOK_SHARE = 0.02  # of the time that may be spent looking: listing a large shared folder can take seconds
LINE_SECONDS = 30.0  # between two lines in a log


class Progress:
    """How many samples there are; a context manager.

    Args:
        files: of the job's samples.
        blocks: of the whole job.
        times: returns the times of the stages so far.
        shown: whether anything is shown.
    """

    def __init__(
        self, files: SampleFiles, blocks: Sequence[range], times: Callable[[], StageTimes], shown: bool = True
    ) -> None:
        self._task, self._times, self._shown = files.task, times, shown
        self._total = sum(map(len, blocks))
        self._missing = Counter(file for block in blocks for file in files.last_files(block)) if shown else Counter()
        self._before = self._total - self._missing.total()
        self._began = self._line = time.monotonic()
        self._next_look = self._began + LOOK_SECONDS
        self._bar = None
        if shown and sys.stderr.isatty():
            unit, before = " samples", self._before
            self._bar = tqdm(total=self._total, initial=before, desc=self._task, unit=unit, mininterval=0.2)

    def look(self) -> None:
        """Show how many there are now, if the last look was long enough ago."""
        if self._shown and time.monotonic() >= self._next_look:
            self._look()
            if self._bar is None and time.monotonic() - self._line >= LINE_SECONDS:
                self._print()

    def _look(self) -> None:
        began = time.monotonic()
        present = {folder: set(_names(folder)) for folder in {file.parent for file in self._missing}}
        for file in [file for file in self._missing if file.name in present[file.parent]]:
            del self._missing[file]
        self._next_look = time.monotonic() + max(LOOK_SECONDS, (time.monotonic() - began) / LOOK_SHARE)
        if self._bar is not None:
            self._bar.set_postfix_str(self._stages(), refresh=False)
            self._bar.update(self._made - self._bar.n)

    @property
    def _made(self) -> int:
        return self._total - self._missing.total()

    def _stages(self) -> str:
        stages = str(self._times())
        return f"seconds per sample: {stages}" if stages else ""

    def _print(self) -> None:
        self._line = time.monotonic()
        parts = [f"{self._task}: {self._made:,} of {self._total:,} samples"]
        rate = (self._made - self._before) / max(time.monotonic() - self._began, 1e-9)
        if rate:
            parts.append(f"{rate:.3g} samples/s")
        if rate and self._missing:
            parts.append(f"{duration(self._missing.total() / rate)} left")
        print("; ".join(filter(None, [", ".join(parts), self._stages()])), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._shown:
            return
        self._look()
        if self._bar is not None:
            self._bar.close()
        self._print()


def _names(folder: Path) -> list[str]:
    """Return the names in ``folder``, which may not exist yet."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
