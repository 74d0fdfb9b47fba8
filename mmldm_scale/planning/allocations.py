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
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmldm_scale.models.meta_operators import call, fused_attention, tensors_in


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
        for tensor in tensors_in((args, kwargs)):
            self._record(tensor, new=False)
        result = call(operator, args, kwargs or {})
        for tensor in tensors_in(result):
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


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
