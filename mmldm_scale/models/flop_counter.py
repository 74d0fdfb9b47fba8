"""Counts the floating-point operations of what runs in a ``with`` block, on the device "meta" in little time.

with FlopCounter() as counter:
    network(batch)
print(counter.total)

flops_of(lambda: network(batch))          # the total alone, without gradients
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from mmldm_scale.models.meta_operators import call


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: torch.Tensor, *inputs: Any, **__: Any) -> int:
    return 2 * _attention(*inputs)  # the kernel's own recomputation is not counted


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # the attention kernel that runs on the device "meta"
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of matrix products, convolutions and attention in a ``with`` block, by torch's formulas.

    torch's ``FlopCounterMode`` computes the shapes of each operator anew, which takes seconds on "meta", and does not
    count by type of number, on which the time depends: on a V100 the KL-VAE, in float32 beside fp16, takes eight times
    as long as in fp16.

    Attributes:
        flops: floating-point operations by the type of number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()

    @property
    def total(self) -> int:
        """Floating-point operations (twice the MACs) of all types of number."""
        return self.flops.total()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``operator`` and count its FLOPs."""
        kwargs = kwargs or {}
        result = call(operator, args, kwargs)
        formula = FORMULAS.get(operator._overloadpacket)
        if formula:
            self.flops[args[0].dtype] += formula(*args, **kwargs, out_val=result)
        return result


def flops_of(function: Callable[[], object]) -> int:
    """Return the floating-point operations (twice the MACs) of ``function()``, which runs without gradients."""
    with FlopCounter() as counter, torch.no_grad():
        function()
    return counter.total
