"""Watches an engine's loss and gradients, and holds its optimizer back from a step that must be skipped.

DeepSpeed skips some of these steps by itself, but not with ZeRO 0 in float32, and never one engine's step because of
another's.
"""

import math

import torch
from torch import Tensor

from mmldm_scale.training.engine import deepspeed_internals
from mmldm_scale.training.engine.deepspeed_engine import base_optimizer
from mmldm_scale.training.engine.deepspeed_internals import Engine


class StepGuard:
    """Stands between an engine and its optimizer; make it when the engine is built.

    In fp16, gradients that are not finite are usual and are left to DeepSpeed, which lowers the loss scale.

    Args:
        follows: another engine's guard; this engine skips every step that the other one skips.

    Attributes:
        skip_step: whether the optimizer is held back; then ``engine.step()`` clears the gradients and changes nothing
            else.
        highest_norm: a gradient norm above it makes the step be skipped, where DeepSpeed computes a norm (not with
            ZeRO 0 in float32).
    """

    def __init__(self, engine: Engine, follows: "StepGuard | None" = None) -> None:
        self._engine, self._follows = engine, follows
        self.begin_step()
        base_optimizer(engine).must_skip = self._must_skip
        if not engine.fp16_enabled():
            for parameter in engine.module.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(self.watch)

    def begin_step(self) -> None:
        """Forget the step before."""
        self.skip_step, self.highest_norm = False, math.inf
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def watch(self, tensor: Tensor) -> None:
        """Include ``tensor``, of any shape, in :meth:`is_finite`; this does not wait for the device."""
        self._sums.append(tensor.sum(dtype=torch.float32))  # infinities and NaNs survive every sum

    def is_finite(self) -> bool:
        """Return whether all losses and gradients of this process and step are finite; this waits for the device."""
        return not self._sums or math.isfinite(torch.stack(self._sums).sum().item())

    def _must_skip(self) -> bool:
        if self._follows is not None:
            self.skip_step |= self._follows.skip_step
        if self.highest_norm < math.inf:
            norm = deepspeed_internals.norm_of_this_step(self._engine)
            self.skip_step |= norm is not None and norm > self.highest_norm
        return self.skip_step
