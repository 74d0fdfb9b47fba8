"""Activation checkpointing: what a block's forward pass does not keep, its backward pass computes again.

``recompute(block, "selective", x, …)`` calls ``block(x, …)``. "full" keeps the block's inputs alone, so that training
runs its forward pass twice; "selective" also keeps what matrix products and attention gave, which is most of the
arithmetic, so that only norms, modulation and activation functions run twice. Neither changes a result.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recomputation = Literal["none", "selective", "full"]

# An attention kernel of another library than PyTorch is no such operator, and runs again.
KEPT = frozenset(
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
    """Return ``block(*inputs)``, keeping for the backward pass what ``mode`` says."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    if mode == "full":
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_selective)


def _selective() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
