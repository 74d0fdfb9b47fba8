"""Watches the gradients of an engine, and holds its optimizer back from a step that must not be taken.

DeepSpeed skips some of these steps by itself, but not at ZeRO 0 in float32, and never one engine's for another's sake.
"""

import math
from typing import Any

import deepspeed
import torch
from torch import Tensor

from mmldm_scale.training.engine.deepspeed_engine import base_optimizer


class Guard:
    """Stands between an engine and its optimizer; make it when the engine is built.

    In fp16 a gradient that is not finite is nothing unusual, and is left to DeepSpeed: it lowers the loss scale.

    Attributes:
        closed: Whether the optimizer is held back: then DeepSpeed's step clears the gradients and changes nothing else.
        highest_norm: A gradient norm beyond it closes the guard, where DeepSpeed tells a norm (all but ZeRO 0 in fp32).
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine, self._optimizer = engine, base_optimizer(engine)
        self._take, self._optimizer.step = self._optimizer.step, self._step
        self.begin_step()
        if not engine.fp16_enabled():
            for parameter in engine.module.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(self.watch)

    def begin_step(self) -> None:
        """Forget the step before."""
        self.closed, self.highest_norm = False, math.inf
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def watch(self, tensor: Tensor) -> None:
        """Have ``tensor`` count for whether all is finite; this does not wait for the device."""
        self._sums.append(tensor.sum(dtype=torch.float32))  # infinities and NaNs survive every sum

    def finite(self) -> bool:
        """Return whether all that this process saw in this step was finite; this waits for the device."""
        return not self._sums or math.isfinite(torch.stack(self._sums).sum().item())

    def _step(self, *arguments: Any, **options: Any) -> Any:
        if self.highest_norm < math.inf:
            norm = getattr(self._engine.optimizer, "_global_grad_norm", None)  # of this step: DeepSpeed has just set it
            self.closed |= norm is not None and float(norm) > self.highest_norm
        return None if self.closed else self._take(*arguments, **options)
