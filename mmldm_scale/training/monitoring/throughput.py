"""Throughput of a run: samples per second, achieved FLOP/s, and their share of the devices' peak (MFU).

meter = ThroughputMeter(flops_per_sample, peak_flops(device, dtype) * world_size, samples_seen)
with meter.paused("saving"):
    …
values = meter.read(samples_seen)
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

# Dense peak in TFLOP/s by part of the device's name and dtype of the matrix units (vendors' data sheets).
PEAK_TFLOPS: dict[str, dict[torch.dtype, float]] = {
    "H200": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "H100": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "H800": {torch.bfloat16: 989.0, torch.float16: 989.0, torch.float32: 494.0},
    "A100": {torch.bfloat16: 312.0, torch.float16: 312.0, torch.float32: 156.0},
    "A800": {torch.bfloat16: 312.0, torch.float16: 312.0, torch.float32: 156.0},
    "V100": {torch.float16: 125.0, torch.float32: 15.7},
}
LONG_ENOUGH = 0.02  # seconds of a product of matrices that can be timed
TRAINING = 3.0  # FLOPs of a training step, in forward passes: one forward, and a backward that costs two


class ThroughputMeter:
    """Measures the throughput between two calls of :meth:`read`; make it when the first step begins.

    Args:
        flops_per_sample: floating-point operations of a sample's forward pass.
        peak_flops: FLOP/s of the devices of all processes together.
        samples_seen: at the start.
    """

    def __init__(self, flops_per_sample: float, peak_flops: float, samples_seen: int) -> None:
        self._flops = TRAINING * flops_per_sample
        self._peak = peak_flops
        self._last = (samples_seen, time.perf_counter())
        self._data_wait = 0.0  # seconds since the last reading
        self._pauses: dict[str, float] = {}  # seconds by name

    def add_data_wait(self, seconds: float) -> None:
        """Count ``seconds`` of waiting for a micro-batch."""
        self._data_wait += seconds

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Count the time in the block as a pause of training for ``name``, logged as "time/NAME"."""
        began = time.perf_counter()
        yield
        self._pauses[name] = self._pauses.get(name, 0.0) + time.perf_counter() - began

    def read(self, samples_seen: int) -> dict[str, float]:
        """Return the values since the last reading, by tag. Pauses do not count as training time."""
        (before, began), now = self._last, time.perf_counter()
        trained = max(now - began - sum(self._pauses.values()), 1e-9)
        rate = (samples_seen - before) / trained
        values = {
            "speed/samples_per_second": rate,
            "speed/tflops": rate * self._flops / 1e12,
            "speed/mfu": rate * self._flops / self._peak,
            "speed/data_wait_share": self._data_wait / trained,
            **{f"time/{name}": seconds for name, seconds in self._pauses.items()},
            **memory(),
        }
        self._last, self._data_wait, self._pauses = (samples_seen, now), 0.0, {}
        return values


def memory() -> dict[str, float]:
    """Return the peak GPU and host memory of this process, and the free host memory of its machine, in GiB."""
    values = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        values["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        values["memory/gpu_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return values | {"memory/host_free_gib": int(meminfo["MemAvailable"].split()[0]) / 2**20}


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the dense peak of ``device`` in FLOP/s: from :data:`PEAK_TFLOPS`, else measured now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peaks in PEAK_TFLOPS.items():
            if part in name and dtype in peaks:
                return peaks[dtype] * 1e12
    return _measured(device, dtype)


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of some products of square matrices.

    The matrices grow until a product takes long enough to be timed: a CPU that has no arithmetic in bfloat16 would take
    10 seconds for one of width 1,024.
    """
    rate = 0.0
    for size in (128, 256, 512, 1024):
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        seconds = min(_seconds(matrix) for _ in range(4))
        rate = max(rate, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    return rate


def _seconds(matrix: torch.Tensor) -> float:
    """Return the seconds that the product of ``matrix`` with itself takes."""
    began = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for the device
    return time.perf_counter() - began
