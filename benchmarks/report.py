"""Shared by the benchmarks: ``machine`` describes the machine, ``publish`` prints and writes the results."""

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch


def machine(*packages: str, device: torch.device | None = None) -> dict[str, object]:
    """Return processor (the GPU, if ``device`` is one), cores, load, versions of ``packages`` and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    on_gpu = device is not None and device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if on_gpu else name,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def publish(results: Mapping[str, object], output: Path | None) -> None:
    """Print ``results`` as JSON, and write them to ``output`` if it is given."""
    text = json.dumps(results, indent=2, ensure_ascii=False)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
