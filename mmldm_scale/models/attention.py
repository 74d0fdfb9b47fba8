"""Scaled dot-product attention: one function, five backends, and one table of which of them runs where.

``attention(q, k, v, backend)`` computes softmax(q kᵀ / √D) v. :func:`choose_backend` turns the configuration's value
("auto" or a name) into the backend to use, once for each device, dtype and head width. A backend is available when its
function can be imported: packages share names (flash-attn 2 and flash-attn-4 both install ``flash_attn``), so that a
package alone says nothing.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Backend

logger = logging.getLogger(__name__)

Capability = tuple[int, int]  # CUDA compute capability: (7, 0) Volta, (8, 0) Ampere, (9, 0) Hopper, (10, 0) Blackwell

HALF, ALL = (torch.float16, torch.bfloat16), (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NEWEST: Capability = (99, 0)  # above every GPU's compute capability
ALIGNMENT = 16  # bytes; the kernels of xformers and flash-attn-4 load a head's vector in blocks of this size


@dataclass(frozen=True)
class Kernel:
    """What a backend needs, and on which GPUs "auto" chooses it."""

    dtypes: tuple[torch.dtype, ...] = ALL
    gpus: tuple[Capability, Capability] | None = None  # the GPUs it runs on, from, to (excluding); None: any device
    auto: tuple[Capability, Capability] | None = None  # the GPUs on which "auto" may choose it, from, to (excluding)
    function: tuple[str, str] | None = None  # the module and name of an optional library's function
    install: str = ""  # the command that installs the library
    widest_head: int | None = None  # the largest width of a head; None: no limit
    aligned_heads: bool = False  # whether a head's vector must fill whole blocks of ALIGNMENT bytes


# "auto" takes the first available backend that may run here, or else sdpa. flash-attn 2 comes before flash-attn-4 on
# Hopper and Blackwell, too: it is the stable release that the `flash` extra installs, compiled ahead of time, whereas
# flash-attn-4 is a beta that compiles its kernels in every process' first step. Who has both and wants the latter sets
# `attention=flash4`.
KERNELS: dict[Backend, Kernel] = {
    "flash": Kernel(
        dtypes=HALF,
        gpus=((8, 0), NEWEST),
        auto=((8, 0), NEWEST),
        function=("flash_attn", "flash_attn_func"),
        install="pip install 'mmldm_scale[flash]'",
        widest_head=256,
    ),
    "flash4": Kernel(  # the limits that all releases share, forward and backward
        dtypes=HALF,
        gpus=((9, 0), (11, 0)),
        auto=((9, 0), (11, 0)),
        function=("flash_attn.cute", "flash_attn_func"),
        install="pip install flash-attn-4",
        widest_head=128,
        aligned_heads=True,
    ),
    "xformers": Kernel(
        dtypes=(*HALF, torch.float32),
        gpus=((7, 0), NEWEST),
        auto=((7, 0), (8, 0)),
        function=("xformers.ops", "memory_efficient_attention"),
        install="pip install xformers",
        aligned_heads=True,
    ),
    "sdpa": Kernel(),  # PyTorch's own kernels
    "math": Kernel(),  # the definition, written out: the reference for the others
}


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Backend) -> torch.Tensor:
    """Return softmax(q kᵀ / √D) v, (B, H, N, D), for q of shape (B, H, N, D) and k, v of shape (B, H, M, D).

    ``backend`` is one of :data:`KERNELS`, as :func:`choose_backend` returns it.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if backend == "math":
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
    function = _function(backend)
    if function is None:
        raise ValueError(f"attention: the library of backend {backend!r} is missing; call choose_backend first")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, H, D) and (B, M, H, D), as all three libraries take them
    output = function(q, k, v)
    if isinstance(output, tuple):  # flash-attn-4 returns the log-sum-exp, (B, H, N), beside the output
        output = output[0]
    return output.transpose(1, 2)  # (B, H, N, D)


@functools.cache
def choose_backend(
    requested: Backend, device: torch.device, dtype: torch.dtype, head_width: int | None = None
) -> Backend:
    """Return the backend to use for ``requested`` on ``device`` in ``dtype``.

    Args:
        head_width: D, the width of a head; None leaves it unchecked.

    Raises:
        UserError: ``requested`` names a backend that cannot run here.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    backend = resolve(requested, capability, dtype, lambda name: _function(name) is not None, head_width)
    logger.info("attention: %s → %s (%s, %s)", requested, backend, device, dtype)
    return backend


def resolve(
    requested: Backend,
    capability: Capability | None,
    dtype: torch.dtype,
    available: Callable[[Backend], bool],
    head_width: int | None = None,
) -> Backend:
    """Return the backend for ``requested`` on a GPU of ``capability`` (None: no CUDA GPU) from :data:`KERNELS`.

    Args:
        available: whether a backend's library function can be imported. It is called only for backends that meet all
            other conditions, so that libraries that cannot run here are not imported.
        head_width: as in :func:`choose_backend`.

    Raises:
        UserError: ``requested`` names a backend that cannot run here.
    """
    if requested != "auto":
        problem = _problem(requested, capability, dtype, available, head_width)
        if problem:
            raise UserError(f"attention: {requested} cannot be used here: {problem}; attention=auto works everywhere")
        return requested
    for name, kernel in KERNELS.items():
        candidate = kernel.auto and capability and kernel.auto[0] <= capability < kernel.auto[1]
        if candidate and not _problem(name, capability, dtype, available, head_width):
            return name
    return "sdpa"


def _problem(
    name: Backend,
    capability: Capability | None,
    dtype: torch.dtype,
    available: Callable[[Backend], bool],
    head_width: int | None,
) -> str | None:
    """Return why the backend ``name`` cannot run, or None if it can."""
    kernel = KERNELS[name]
    if kernel.gpus:
        if capability is None:
            return "it needs a CUDA GPU"
        oldest, end = kernel.gpus
        if not oldest <= capability < end:
            limit = "" if end == NEWEST else f" or newer, below {_dotted(end)}"
            return f"it needs compute capability {_dotted(oldest)}{limit}, this GPU has {_dotted(capability)}"
        if dtype == torch.bfloat16 and capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0, this GPU has {_dotted(capability)}"
    if dtype not in kernel.dtypes:
        return f"it computes in {', '.join(map(_short, kernel.dtypes))}, not in {_short(dtype)}"
    if head_width is not None:
        if kernel.widest_head and head_width > kernel.widest_head:
            return f"its heads are at most {kernel.widest_head} wide, those of this model {head_width}"
        if kernel.aligned_heads and head_width * dtype.itemsize % ALIGNMENT:
            multiple = ALIGNMENT // dtype.itemsize
            return f"the width of a head must be a multiple of {multiple} in {_short(dtype)}, not {head_width}"
    if kernel.function and not available(name):
        return f"{'.'.join(kernel.function)} is not installed or cannot be imported; run {kernel.install}"
    return None


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _function(name: Backend) -> Callable[..., Any] | None:
    """Return the library function of the backend ``name``; None where it has none, or it is missing or broken.

    This is the one place that imports an optional attention library.
    """
    path = KERNELS[name].function
    if path is None:
        return None
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(path[0]), path[1])
    except Exception as error:  # the import of a library built for another torch or CUDA can raise anything
        logger.info("attention: %s cannot be imported: %s", ".".join(path), error)
        return None
    return function
