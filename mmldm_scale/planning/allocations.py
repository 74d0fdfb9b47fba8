"""The memory that a computation takes, counted on the device "meta": it needs no GPU and takes none of that memory.

    with torch.device("meta"):
        model, batch = …
    with Allocations(model.parameters()) as memory:
        model(batch).mean().backward()
    print(memory.peak)  # bytes

Every storage that is created in the block counts until its last reference is gone, once however many tensors share it.
So the peak of a forward and backward pass includes what autograd keeps (with activation checkpointing less, and one
recomputed segment at a time), and temporary results of operators. Not counted: tensors made before the block
(parameters, the batch), complete gradients of parameters (they belong to the optimizer), the workspace of kernels, and
what an allocator loses to fragmentation.

Real tensors are counted the same way, so that the tests can compare both with a real allocator.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Counts the storages that come and go in a ``with`` block.

    Args:
        parameters: their gradients are dropped as soon as they are complete.

    Attributes:
        now: bytes that exist now.
        peak: the most bytes that existed at once.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._known: dict[int, weakref.ref] = {}  # every existing storage, counted or not, by its address
        self._exits = ExitStack()

    def __enter__(self) -> "Allocations":
        for parameter in self._trained:
            self._exits.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
        self._exits.enter_context(fused_attention())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._exits.close()

    def __torch_dispatch__(
        self, operator: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``operator``. Inputs not seen before were made outside the block; outputs not seen before are new."""
        for tensor in _tensors((args, kwargs)):
            self._record(tensor, new=False)
        shortcut = SHORTCUTS.get(operator) if args and _without_data(args[0]) else None
        result = (shortcut or operator)(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._record(tensor, new=True)
        return result

    def _record(self, tensor: Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes() if new else 0

        def forget(_: weakref.ref) -> None:
            del self._known[address]
            self.now -= size

        self._known[address] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, positions: int, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(batch, groups), x.new_empty(batch, groups)  # contiguous, as on GPUs


def _group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if weight is None:
        return x.new_empty(x.shape), None, None
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = [*x.shape[: -len(shape)], *(1 for _ in shape)]
    mean, deviation = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, deviation


def _layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, mean: Tensor, deviation: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return _group_norm_backward(gradient, x, mean, deviation, weight)


# Shapes of what the norms return. PyTorch would decompose them on "meta", which takes two thirds of the whole time.
SHORTCUTS: dict[Callable, Callable] = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward,
}


@contextmanager
def fused_attention() -> Iterator[None]:
    """Run attention on "meta" as one operator that keeps its inputs, its output and one number a row.

    The kernels of GPUs and CPUs do so. The device "meta" has none and would store the attention weights. (The function
    is replaced because a ``TorchFunctionMode`` is not active when a backward pass recomputes it.)
    """
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_attention if _without_data(query) else original)(query, *args, **kwargs)

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


def _without_data(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
