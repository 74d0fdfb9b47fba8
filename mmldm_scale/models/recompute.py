"""Activation checkpointing: keep fewer activations in the forward pass and recompute them in the backward pass.

``recompute(block, "selective", x, …)`` calls ``block(x, …)``. "full" keeps only the block's inputs, so that training
runs its forward pass twice. "selective" also keeps the outputs of matrix products and attention, which are most of the
arithmetic, so that only norms, modulation and activation functions run twice. Neither changes a result.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recomputation = Literal["none", "selective", "full"]

# The operators whose outputs "selective" keeps. Attention kernels of other libraries are not PyTorch operators, so that
# they run twice.
KEPT_OPERATORS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


def recompute(block: Callable[..., Tensor], mode: Recomputation, *inputs: Any) -> Tensor:
    """Return ``block(*inputs)``, such as (B, N, D), with the activations kept that ``mode`` names."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    if mode == "full":
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_selective)


def _selective() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE
