"""Scaled dot-product attention: one function, four backends, and one table of which of them can run where.

``attention(q, k, v, backend)`` computes softmax(q kᵀ / √D) v. :func:`choose_backend` turns what the configuration
wants ("auto" or a name) into the backend to use, once for each device and dtype, and logs what it took: on Ampere
and newer flash-attn if it is installed, on Volta and Turing xformers, everywhere else PyTorch's own kernels. "math"
is the definition spelled out, for checking the others.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Backend

logger = logging.getLogger(__name__)

Capability = tuple[int, int]  # CUDA compute capability: (7, 0) Volta, (8, 0) Ampere, (9, 0) Hopper
HALF, ALL = (torch.float16, torch.bfloat16), (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Kernel:
    """What a backend needs, and from which to (excluding) which GPU "auto" takes it if its needs are met."""

    dtypes: tuple[torch.dtype, ...] = ALL
    oldest: Capability | None = None  # the oldest GPU it runs on; None: any device, CPUs too
    auto: tuple[Capability, Capability] | None = None
    package: str | None = None  # the Python module that brings it
    install: str = ""


KERNELS: dict[Backend, Kernel] = {  # "auto" takes the first that fits and is installed, or else sdpa
    "flash": Kernel(HALF, (8, 0), ((8, 0), (99, 0)), "flash_attn", "pip install 'mmldm_scale[flash]' fits"),
    "xformers": Kernel((*HALF, torch.float32), (7, 0), ((7, 0), (8, 0)), "xformers.ops", "pip install xformers fits"),
    "sdpa": Kernel(),
    "math": Kernel(),
}


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Backend) -> torch.Tensor:
    """Return softmax(q kᵀ / √D) v, (B, H, N, D), for q of shape (B, H, N, D) and k, v of shape (B, H, M, D).

    ``backend`` is one of :data:`KERNELS`, as :func:`choose_backend` returns it.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if backend == "math":
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
    library = _library(KERNELS[backend].package)
    kernel = library.flash_attn_func if backend == "flash" else library.memory_efficient_attention
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # both libraries take (B, N, H, D)
    return kernel(q, k, v).transpose(1, 2)  # (B, H, N, D)


@functools.cache
def choose_backend(wanted: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend for ``wanted`` on ``device`` in ``dtype``; raise UserError if ``wanted`` cannot work."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    backend = resolve(wanted, capability, dtype, lambda package: _library(package) is not None)
    logger.info("attention: %s → %s (%s, %s)", wanted, backend, device, dtype)
    return backend


def resolve(
    wanted: Backend, capability: Capability | None, dtype: torch.dtype, installed: Callable[[str], bool]
) -> Backend:
    """Read the table: the backend for ``wanted`` on a GPU of ``capability`` (None: no CUDA GPU).

    ``installed`` says whether a package can be imported; it is asked only about what would otherwise run.

    Raises:
        UserError: ``wanted`` names a backend that cannot run here.
    """
    if wanted != "auto":
        problem = _problem(wanted, capability, dtype, installed)
        if problem:
            raise UserError(f"attention: {wanted} cannot be used here: {problem}; 'auto' fits everywhere")
        return wanted
    for name, kernel in KERNELS.items():
        suits = kernel.auto and capability and kernel.auto[0] <= capability < kernel.auto[1]
        if suits and not _problem(name, capability, dtype, installed):
            return name
    return "sdpa"


def _problem(
    name: Backend, capability: Capability | None, dtype: torch.dtype, installed: Callable[[str], bool]
) -> str | None:
    """Return why the backend ``name`` cannot run, or None if it can."""
    kernel = KERNELS[name]
    if kernel.oldest and capability is None:
        return "it needs a CUDA GPU"
    if kernel.oldest and capability < kernel.oldest:
        return f"it needs compute capability {_dotted(kernel.oldest)}, this GPU has {_dotted(capability)}"
    if dtype not in kernel.dtypes:
        fitting = ", ".join(_short(d) for d in kernel.dtypes)
        return f"it computes in {fitting}, not in {_short(dtype)}"
    if kernel.oldest and dtype == torch.bfloat16 and capability < (8, 0):
        return f"bfloat16 needs compute capability 8.0, this GPU has {_dotted(capability)}"
    if kernel.package and not installed(kernel.package):
        return f"{kernel.package.partition('.')[0]} is not installed or does not import; {kernel.install}"
    return None


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _library(package: str) -> ModuleType | None:
    """Import an optional package: the one place where one may be missing or broken (built for another torch)."""
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        logger.info("attention: %s does not import: %s", package, error)
        return None
