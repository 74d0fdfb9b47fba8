"""The memory that a computation takes, counted on shapes alone: no GPU is needed, and none of that memory.

    with torch.device("meta"):
        model, batch = …
    with Allocations(model.parameters()) as memory:
        model(batch).mean().backward()
    print(memory.peak)  # bytes

Every storage that comes into being in the block counts from then until nothing refers to it any more, once however many
tensors share it. So the peak of a forward and backward pass has all in it: what autograd keeps, of which activation
checkpointing keeps less and has a segment at a time computed again, and what lives from one operator to the next. Left
out are tensors from before the block (parameters, the batch), and complete gradients of parameters, whose place is the
optimizer's matter. Nobody can see here what kernels take for themselves and what an allocator cannot put to use.

Real tensors count as those without data do, which is how the tests know that the count is right.
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
        parameters: whose gradients are dropped as soon as they are complete.

    Attributes:
        now: bytes that are alive now.
        peak: bytes that were alive at most.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._learning = [parameter for parameter in parameters if parameter.requires_grad]
        self._known: dict[int, weakref.ref] = {}  # every living storage, counted or not, by its address
        self._exits = ExitStack()

    def __enter__(self) -> "Allocations":
        for parameter in self._learning:
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
        """Run ``operator``; what it takes and has not come up before is from outside, what it gives is new."""
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, new=False)
        shortcut = SHORTCUTS.get(operator) if args and _without_data(args[0]) else None
        result = (shortcut or operator)(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, new=True)
        return result

    def _meet(self, tensor: Tensor, new: bool) -> None:
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


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, batch: int, *sizes: float) -> tuple[Tensor, Tensor, Tensor]:
    groups = sizes[-2]  # then comes ε
    return x.new_empty(x.shape), x.new_empty(batch, groups), x.new_empty(batch, groups)  # contiguous, as on GPUs


def _group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return (x.new_empty(x.shape), *(None if weight is None else torch.empty_like(weight) for _ in range(2)))


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = [*x.shape[: -len(shape)], *(1 for _ in shape)]
    statistics = [x.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return (x.new_empty(x.shape), *statistics)


def _layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, mean: Tensor, deviation: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return _group_norm_backward(gradient, x, mean, deviation, weight)


# What the norms return, where PyTorch would run them on shapes step by step: two thirds of all the time it takes.
SHORTCUTS: dict[Callable, Callable] = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward,
}


@contextmanager
def fused_attention() -> Iterator[None]:
    """Make attention without data one operator, which keeps its inputs, its output and one number a row.

    So do the kernels of all GPUs and of the CPU, but the device "meta" has none, and would write out the weights. (The
    function is exchanged because a ``TorchFunctionMode`` would not be there when a backward pass computes it again.)
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
