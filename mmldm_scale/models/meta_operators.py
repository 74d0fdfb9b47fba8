"""Operators on the device "meta": only shapes, and those of each operator are computed once.

    result = call(operator, args, kwargs)  # in a TorchDispatchMode
    with fused_attention():
        model(batch)                       # attention as one operator, as on GPUs

PyTorch computes most shapes in Python, by decomposing the operator, which takes nearly all the time of a step on
"meta". The layers of a network repeat one another, so an operator's result for inputs of the same shapes is remembered.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """What a new tensor is made of."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


_layouts: dict[Hashable, Any] = {}  # of operators' results, by operator and inputs; None: not to be remembered


def call(operator: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return ``operator(*args, **kwargs)``; if all its inputs and results are on "meta", from what is remembered."""
    inputs = list(tensors_in((args, kwargs)))
    if not inputs or not all(map(without_data, inputs)):
        return operator(*args, **kwargs)
    key = operator, _description(args), _description(kwargs)
    layouts = _layouts.get(key)
    if layouts is not None:
        return _make(layouts)
    result = operator(*args, **kwargs)
    if key not in _layouts:
        _layouts[key] = _layout(result) if _is_new(operator, result, inputs) else None
    return result


def _description(value: Any) -> Hashable:
    """Return what the shapes of a result can depend on; 1, 1.0 and True differ."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_description, value))
    if isinstance(value, dict):
        return tuple((name, _description(part)) for name, part in value.items())
    return type(value), value


def _is_new(operator: Any, result: Any, inputs: list[Tensor]) -> bool:
    """Return whether ``operator`` changes no input and each tensor of ``result`` fills a storage of its own."""
    outputs = list(tensors_in(result))
    if operator._schema.is_mutable or not all(map(without_data, outputs)):
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in [*inputs, *outputs]}
    apart = len(storages) == len({tensor.untyped_storage()._cdata for tensor in inputs}) + len(outputs)
    return apart and all(
        _make(_layout(tensor)).untyped_storage().nbytes() == tensor.untyped_storage().nbytes() for tensor in outputs
    )


def _layout(result: Any) -> Any:
    """Return ``result`` with a :data:`Layout` in place of each tensor."""
    if isinstance(result, Tensor):
        return Layout(result.shape, result.stride(), result.dtype)
    return tuple(map(_layout, result)) if isinstance(result, (list, tuple)) else result


def _make(layouts: Any) -> Any:
    """Return new tensors of ``layouts``, in the structure that they were found in."""
    if isinstance(layouts, Layout):
        return torch.empty_strided(layouts.shape, layouts.stride, dtype=layouts.dtype, device="meta")
    return tuple(map(_make, layouts)) if isinstance(layouts, tuple) else layouts


@contextmanager
def fused_attention() -> Iterator[None]:
    """Run attention on "meta" as one operator that keeps its inputs, its output and one number a row.

    The kernels of GPUs and CPUs do so. The device "meta" has none and would store the attention weights. (The function
    is replaced because a ``TorchFunctionMode`` is not active when a backward pass recomputes it.)
    """
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_attention if without_data(query) else original)(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def without_data(value: Any) -> bool:
    """Return whether ``value`` is a tensor on the device "meta"."""
    return isinstance(value, Tensor) and value.device.type == "meta"


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of ``tree``: tuples, lists and dictionaries of tensors and other values."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))
