"""A trace of the first steps after a start, made by torch.profiler and written to ``runs/NAME/profile/``.

The Chrome trace (``.json.gz``) opens in https://ui.perfetto.dev or chrome://tracing; the table (``.txt``) lists the
operators that took longest. Only rank 0 is traced.
"""

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3  # steps before the trace, in which memory is allocated and kernels are chosen and compiled
ROWS = 20  # operators in the table


class StepProfiler:
    """Traces ``steps`` optimizer steps after the first :data:`WARM_UP`; 0: none."""

    def __init__(self, run: Path, steps: int) -> None:
        self._folder, self._steps = run / "profile", steps
        self._done = 0
        self._profiler: profile | None = None

    def step(self, samples_seen: int) -> None:
        """Count the optimizer step that ended at ``samples_seen``."""
        self._done += 1
        if not self._steps or self._done > WARM_UP + self._steps:
            return
        if self._done == WARM_UP:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *gpu], acc_events=True)
            self._profiler.start()
        elif self._profiler and self._done == WARM_UP + self._steps:
            self._write(self._profiler, samples_seen)
            self._profiler = None

    def close(self) -> None:
        """Stop an unfinished trace without writing it."""
        if self._profiler:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: profile, samples_seen: int) -> None:
        """Write the trace that ends at ``samples_seen``; print why if that fails."""
        profiler.stop()
        name = f"step-{samples_seen:012d}"
        trace, table = self._folder / f"{name}.json.gz", self._folder / f"{name}.txt"
        sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(trace))
            table.write_text(profiler.key_averages().table(sort_by=sort_by, row_limit=ROWS) + "\n")
            line = f"profiled {self._steps} steps: {trace} and {table.name}"
        except (OSError, RuntimeError) as error:
            line = f"{self._folder}: the profile cannot be written: {error}"
        print(line, file=sys.stderr, flush=True)
