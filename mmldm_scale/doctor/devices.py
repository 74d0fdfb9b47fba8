"""Checks of the GPU of this process, of the driver of the node's GPUs, and of attention against float64."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence

import torch

from mmldm_scale.cluster import slurm
from mmldm_scale.common import rng
from mmldm_scale.common.device import gpu_index
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Backend
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.models import attention as kernels

FREE = 0.9  # share of a GPU's memory below which another process seems to use it
SHAPE = (2, 3, 399, 64)  # (B, H, N, D), with the number of tokens and the head width of the DiT
# Largest allowed error of attention and its gradients, relative to the largest value.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float32: 1e-3}
QUERY = "index,name,driver_version,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
V100 = "for V100s: make install CONSTRAINTS=constraints-cu126.txt"


def device(local_rank: int) -> torch.device:
    """Return the device of process ``local_rank`` of this node: the CPU if there is no GPU for it."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        return torch.device("cuda", gpu_index(local_rank, torch.cuda.device_count(), slurm.processes_on_node()))
    except UserError:
        return torch.device("cpu")


def gpu(local_rank: int) -> Iterator[Finding]:
    """Check that this process has a GPU, that this torch has kernels for it, and that its memory is free."""
    if not torch.cuda.is_available():
        yield _without_gpu()
        return
    count = torch.cuda.device_count()
    try:
        index = gpu_index(local_rank, count, slurm.processes_on_node())
    except UserError as problem:
        yield Finding("error", "GPU", str(problem))
        return
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        built = " ".join(torch.cuda.get_arch_list())
        shown = ".".join(map(str, capability))
        yield Finding("error", "GPU", f"{name} ({shown}): torch {torch.__version__} has kernels for {built}", V100)
        return
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
    text = f"{count} × {name} ({capability[0]}.{capability[1]})"
    if free < FREE * total:
        used = f"GPU {index}: {free:.1f} of {total:.1f} GiB are free"
        yield Finding("warning", "GPU", f"{used}: another process uses it", "nvidia-smi lists the processes")
    else:
        yield Finding("ok", "GPU", f"{text}, {free:.0f} of {total:.0f} GiB free")


def _without_gpu() -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    installed = _nvidia_smi("--query-gpu=name,driver_version")
    if hidden is not None and not hidden.strip():
        return Finding("warning", "GPU", "none: CUDA_VISIBLE_DEVICES is empty; computing on the CPU")
    if installed:
        name, driver = installed.splitlines()[0].split(", ")
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build for CPUs"
        text = f"{name} (driver {driver}) cannot be used by torch {torch.__version__}, which {built}"
        return Finding("error", "GPU", text, "install a newer driver, or a torch for an older CUDA")
    if slurm.gpus_on_node():
        remedy = "exclude the node (--exclude) and have its driver repaired"
        return Finding("error", "GPU", "SLURM allocated GPUs, but the driver does not answer", remedy)
    return Finding("warning", "GPU", "none; computing on the CPU")


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a torch built for ``built`` ("sm_80", "compute_90") runs on a GPU of ``capability``.

    Machine code ("sm") runs on GPUs of the same major version and the same or a later minor version; PTX ("compute")
    on all later GPUs.
    """
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)[af]?\b", " ".join(built)):
        target = int(major), int(minor)
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def node() -> Iterator[Finding]:
    """Check what the driver reports of each GPU of the node."""
    table = _nvidia_smi(f"--query-gpu={QUERY}")
    if table:
        yield from health(table)


def health(table: str) -> Iterator[Finding]:
    """Check ``table``, which nvidia-smi prints: a line for each GPU, with the columns of QUERY."""
    rows = [line.split(", ") for line in table.splitlines() if line.strip()]
    for index, name, _, _, _, errors in rows:
        if errors.isdecimal() and int(errors):
            text = f"GPU {index} ({name}): {errors} uncorrected memory errors"
            yield Finding("error", "driver", text, "exclude the node (--exclude) and have the GPU replaced")
    drivers = sorted({row[2] for row in rows})
    if len(drivers) == 1:
        yield Finding("ok", "driver", f"{drivers[0]}, {len(rows)} GPU(s)")


def _nvidia_smi(query: str) -> str:
    """Return the output of nvidia-smi, without headings and units; empty where there is none."""
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def default_precision(device: torch.device) -> torch.dtype:
    """Return the default type of a training: bfloat16, float16 on GPUs without bfloat16, float32 on CPUs."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def attention(device: torch.device, dtype: torch.dtype, backend: Backend = "auto") -> Iterator[Finding]:
    """Compare each backend that runs on ``device`` in ``dtype`` with float64, forward and backward.

    Args:
        backend: the one that the configuration asks for.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        chosen = kernels.choose_backend(backend, device, dtype)
    except UserError as problem:
        yield Finding("error", "attention", str(problem))
        chosen = kernels.choose_backend("auto", device, dtype)
    draw = rng.generator(0, "doctor/attention", 0).standard_normal
    inputs = [torch.from_numpy(draw(SHAPE)) for _ in range(3)]
    expected = _forward_and_backward(inputs, "math")
    results, unavailable = [], []
    for name in kernels.KERNELS:
        try:
            kernel = kernels.choose_backend(name, device, dtype)
        except UserError as problem:
            reason = str(problem).partition(": ")[2].split(": ")[-1].partition(";")[0]
            unavailable.append(f"{name} unavailable ({reason})")
            continue
        actual = _forward_and_backward([x.to(device, dtype) for x in inputs], kernel)
        pairs = zip(actual, expected, strict=True)
        error = max(((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        results.append(f"{name} {error:.0e}")
        if not error < TOLERANCES[dtype]:  # true for NaN, too
            text = f"{name} has an error of {error:.1g} against float64 in {dtype}; {TOLERANCES[dtype]:g} is allowed"
            yield Finding("error", "attention", text, "use model.attention=math and report it to the kernel's project")
    outcome = ", ".join([*results, *unavailable])
    yield Finding("ok", "attention", f"{backend} → {chosen}; error against float64: {outcome}")


def _forward_and_backward(inputs: list[torch.Tensor], backend: Backend) -> list[torch.Tensor]:
    """Return the output of attention, and the gradients of the sum of its squares with respect to q, k and v."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs)
    out = kernels.attention(q, k, v, backend)
    gradients = torch.autograd.grad(out.double().square().sum(), (q, k, v))
    return [out.detach(), *gradients]
