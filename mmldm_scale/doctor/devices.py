"""The GPU of this process, what the driver says of those of the node, and attention on it against float64."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence

import torch

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Backend
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.models import attention as kernels

FREE = 0.9  # of a GPU's memory
SHAPE = (2, 3, 399, 64)  # (B, H, N, D): the DiT's tokens and width of a head
# The largest error of attention and its gradient in a type of number, relative to the largest value.
BOUNDS = {torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float32: 1e-3}
QUERY = "index,name,driver_version,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
V100 = "make install CONSTRAINTS=constraints-cu126.txt has those of V100s"


def device(local_rank: int) -> torch.device:
    """Return what process ``local_rank`` of a node computes on."""
    on_gpu = torch.cuda.is_available() and local_rank < torch.cuda.device_count()
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


def gpu(local_rank: int) -> Iterator[Finding]:
    """Look at the GPU of this process: whether there is one, has kernels in this torch, and is free."""
    if not torch.cuda.is_available():
        yield _without_gpu()
        return
    count = torch.cuda.device_count()
    if local_rank >= count:
        remedy = "one task a GPU fits: --ntasks-per-node"
        yield Finding("trouble", "GPU", f"process {local_rank} of this node has none: torch sees {count}", remedy)
        return
    name, capability = torch.cuda.get_device_name(local_rank), torch.cuda.get_device_capability(local_rank)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        built = " ".join(torch.cuda.get_arch_list())
        shown = ".".join(map(str, capability))
        yield Finding("trouble", "GPU", f"{name} ({shown}): torch {torch.__version__} has kernels for {built}", V100)
        return
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(local_rank))
    text = f"{count} × {name} ({capability[0]}.{capability[1]})"
    if free < FREE * total:
        used = f"GPU {local_rank}: {free:.1f} of {total:.1f} GiB are free"
        yield Finding("warning", "GPU", f"{used}: another process is on it", "nvidia-smi shows whose")
    else:
        yield Finding("ok", "GPU", f"{text}, {free:.0f} of {total:.0f} GiB free")


def _without_gpu() -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = _nvidia_smi("--query-gpu=name,driver_version")
    if hidden is not None and not hidden.strip():
        return Finding("warning", "GPU", "none: CUDA_VISIBLE_DEVICES is empty; computing on the CPU")
    if there:
        name, driver = there.splitlines()[0].split(", ")
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build for CPUs"
        text = f"{name} (driver {driver}) is there, but torch {torch.__version__} cannot use it: it {built}"
        return Finding("trouble", "GPU", text, "a newer driver, or a torch built for an older CUDA")
    if int(os.environ.get("SLURM_GPUS_ON_NODE", "0")):
        return Finding("trouble", "GPU", "SLURM gave this job GPUs, but there is no driver", "look after the node")
    return Finding("warning", "GPU", "none; computing on the CPU")


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a torch built for ``built`` ("sm_80", "compute_90") runs on a GPU of ``capability``.

    Machine code runs on GPUs of the same major version and no smaller minor one; PTX on all newer ones.
    """
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)[af]?\b", " ".join(built)):
        target = int(major), int(minor)
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def node() -> Iterator[Finding]:
    """Read what the driver says of each GPU of the node."""
    said = _nvidia_smi(f"--query-gpu={QUERY}")
    if said:
        yield from health(said)


def health(said: str) -> Iterator[Finding]:
    """Read nvidia-smi's table, one line a GPU, with the columns of QUERY."""
    rows = [line.split(", ") for line in said.splitlines() if line.strip()]
    for index, name, _, _, _, errors in rows:
        if errors.isdecimal() and int(errors):
            text = f"GPU {index} ({name}): {errors} memory errors that could not be corrected"
            yield Finding("trouble", "driver", text, "leave out this node (--exclude) and have it looked after")
    drivers = sorted({row[2] for row in rows})
    if len(drivers) == 1:
        yield Finding("ok", "driver", f"{drivers[0]}, {len(rows)} GPU(s)")


def _nvidia_smi(query: str) -> str:
    """Return what nvidia-smi says, without headings and units; nothing where there is none."""
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def working_precision(where: torch.device) -> torch.dtype:
    """Return the type that training on ``where`` takes if nobody says: bfloat16, on GPUs without it float16."""
    if where.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(where) >= (8, 0) else torch.float16


def attention(where: torch.device, dtype: torch.dtype, wanted: Backend = "auto") -> Iterator[Finding]:
    """Hold each backend that can run on ``where`` in ``dtype`` against float64, forward and backward."""
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        chosen = kernels.choose_backend(wanted, where, dtype)
    except UserError as error:
        yield Finding("trouble", "attention", str(error))
        chosen = kernels.choose_backend("auto", where, dtype)
    draw = rng.generator(0, "doctor/attention", 0).standard_normal
    inputs = [torch.from_numpy(draw(SHAPE)) for _ in range(3)]
    expected = _forward_and_backward(inputs, "math")
    errors, absent = [], []
    for name in kernels.KERNELS:
        try:
            backend = kernels.choose_backend(name, where, dtype)
        except UserError as error:
            absent.append(f"{name} not here ({str(error).partition(': ')[2].split(': ')[-1].partition(';')[0]})")
            continue
        found = _forward_and_backward([x.to(where, dtype) for x in inputs], backend)
        pairs = zip(found, expected, strict=True)
        error = max(((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        errors.append(f"{name} {error:.0e}")
        if not error < BOUNDS[dtype]:
            text = f"{name} is {error:.1g} off float64 in {dtype}, more than {BOUNDS[dtype]:g}"
            yield Finding("trouble", "attention", text, "model.attention=math fits until its package is mended")
    yield Finding("ok", "attention", f"{wanted} → {chosen}; off float64: {', '.join([*errors, *absent])}")


def _forward_and_backward(inputs: list[torch.Tensor], backend: Backend) -> list[torch.Tensor]:
    """Return attention's value and the gradients of its square's mean."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs)
    out = kernels.attention(q, k, v, backend)
    gradients = torch.autograd.grad(out.double().square().sum(), (q, k, v))
    return [out.detach(), *gradients]
