"""How fast a run is: samples a second, achieved FLOP/s, and their share of what the device could do (MFU)."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

# Dense peak in TFLOP/s by a part of the device's name and the matrix units' dtype (vendor data sheets).
PEAK_TFLOPS: dict[str, dict[torch.dtype, float]] = {
    "H200": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "H100": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "H800": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "A100": {torch.bfloat16: 312.0, torch.float16: 312.0, torch.float32: 156.0},
    "A800": {torch.bfloat16: 312.0, torch.float16: 312.0, torch.float32: 156.0},
    "V100": {torch.float16: 125.0, torch.float32: 15.7},
}
TRAINING = 3.0  # a training step costs three forward passes: one forward, two backward


class Meter:
    """Measures between two readings; made when the first step begins."""

    def __init__(self, flops_per_sample: float, peak_flops: float, samples_seen: int) -> None:
        self._flops = TRAINING * flops_per_sample
        self._peak = peak_flops  # of all processes together
        self._last = (samples_seen, time.perf_counter())
        self._waited = 0.0
        self._stood: dict[str, float] = {}

    def waited(self, seconds: float) -> None:
        """Count ``seconds`` in which the device had no data to work on."""
        self._waited += seconds

    @contextmanager
    def standing(self, name: str) -> Iterator[None]:
        """Count the time in the block as one in which training stood still for ``name``."""
        began = time.perf_counter()
        yield
        self._stood[name] = self._stood.get(name, 0.0) + time.perf_counter() - began

    def read(self, samples_seen: int) -> dict[str, float]:
        """Return the figures since the last reading; what training stood still for does not slow it down."""
        (before, began), now = self._last, time.perf_counter()
        trained = max(now - began - sum(self._stood.values()), 1e-9)
        rate = (samples_seen - before) / trained
        values = {
            "speed/samples_per_second": rate,
            "speed/tflops": rate * self._flops / 1e12,
            "speed/mfu": rate * self._flops / self._peak,
            "speed/data_wait_share": self._waited / trained,
            **{f"time/{name}": seconds for name, seconds in self._stood.items()},
            **memory(),
        }
        self._last, self._waited, self._stood = (samples_seen, now), 0.0, {}
        return values


def memory() -> dict[str, float]:
    """Return the peak so far of this process's GPU and host memory, and what its machine has left, in GiB."""
    found = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        found["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["memory/gpu_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return found | {"memory/host_free_gib": int(facts["MemAvailable"].split()[0]) / 2**20}


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the dense peak of ``device`` in FLOP/s: from the table, or for other devices measured now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peaks in PEAK_TFLOPS.items():
            if part in name and dtype in peaks:
                return peaks[dtype] * 1e12
    return _measured(device, dtype)


def _measured(device: torch.device, dtype: torch.dtype, size: int = 1024, times: int = 4) -> float:
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
