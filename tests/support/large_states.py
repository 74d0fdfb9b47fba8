"""Weights files of large networks that take little disk: all tensors are views of a few random numbers."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

NUMBERS = 1 << 20  # random numbers that tensors of the same fan-in share
STRIDES = (389, 97, 29, 1)  # from one row of a tensor to the next, of its first to last dimension


def random_state(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return a state for ``network`` (on the meta device) in which signals neither vanish nor grow much.

    Weights are views that overlap; batch normalisation has means near 0 and variances near 1.
    """
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randn(NUMBERS, generator=random)
    scaled: dict[int, Tensor] = {}
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.dim() >= 2:
            exponent = round(math.log2(math.prod(tensor.shape[1:])) / 2)
            source = scaled.setdefault(exponent, numbers * 2.0**-exponent)
            state[name] = source.as_strided(tensor.shape, STRIDES[-tensor.dim() :])
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=random)
        elif tensor.dtype == torch.int64:
            state[name] = torch.tensor(7)
        else:
            state[name] = 0.1 * torch.randn(tensor.shape, generator=random)
    return state


def published(file: Path, state: Mapping[str, Tensor], prefix: str = "", **beside: object) -> Path:
    """Write ``state`` to ``file`` as torch does, with ``prefix`` before its names, or as "model" among ``beside``."""
    content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({"model": content, **beside} if beside else content, file)
    return file
