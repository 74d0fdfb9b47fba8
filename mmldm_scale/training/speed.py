"""How fast a run is: samples a second, achieved FLOP/s, and their share of what the device could do (MFU)."""

import resource
import time
from functools import cache

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

    def waited(self, seconds: float) -> None:
        """Count ``seconds`` in which the device had no data to work on."""
        self._waited += seconds

    def read(self, samples_seen: int) -> dict[str, float]:
        """Return the figures since the last reading."""
        (before, began), now = self._last, time.perf_counter()
        rate = (samples_seen - before) / (now - began)
        values = {
            "speed/samples_per_second": rate,
            "speed/tflops": rate * self._flops / 1e12,
            "speed/mfu": rate * self._flops / self._peak,
            "speed/data_wait_share": self._waited / (now - began),
            "memory/gib": memory_gib(),
        }
        self._last, self._waited = (samples_seen, now), 0.0
        return values


def memory_gib() -> float:
    """Return this process's peak memory in GiB: the GPU's where there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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
