"""The count of floating-point operations of a trainable's passes: ``flops_of(lambda: network(inputs))``."""

from collections.abc import Callable

from torch import no_grad

from mmldm_scale.models.flop_counter import FlopCounter


def flops_of(function: Callable[[], object]) -> int:
    """Return the floating-point operations (twice the MACs) of ``function()``, which runs without gradients."""
    with FlopCounter() as counter, no_grad():
        function()
    return counter.total
