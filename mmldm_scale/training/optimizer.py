"""AdamW that also keeps the averaged weights.

The average lives in the optimizer's state beside Adam's moments. So DeepSpeed shards it with them, offloads it with
them, saves and loads it with them, and leaves it alone in a step it skips: every ZeRO stage has a float32 EMA without a
gather and without code of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

EMA = "ema"


class EMAAdamW(torch.optim.AdamW):
    """torch's AdamW whose state holds, under "ema", the exponential moving average of each parameter.

    Set ``group["ema_decay"]`` before a step; the average starts at the weights before the first one.
    """

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["ema_decay"] = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take AdamW's step, then move the average towards the new weights."""
        before = {p: p.detach().clone() for p in self._stepped() if EMA not in self.state[p]}
        loss = super().step(closure)
        for parameter, start in before.items():
            self.state[parameter][EMA] = start
        for group in self.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None]
            if stepped:
                averages = [self.state[p][EMA] for p in stepped]
                torch._foreach_lerp_(averages, stepped, 1.0 - group["ema_decay"])
        return loss

    def _stepped(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]


def learning_rate(base: float, warmup_samples: int, samples_seen: int) -> float:
    """Return the learning rate of the step that ends at ``samples_seen``: a linear rise, then constant."""
    return base * min(1.0, samples_seen / warmup_samples) if warmup_samples else base


def ema_decay(halflife_samples: int, global_batch: int, samples_seen: int) -> float:
    """Return the decay of the step that ends at ``samples_seen``.

    The half-life grows with the run as a twentieth of what it has seen, up to ``halflife_samples``, so that the start's
    random weights are forgotten early.
    """
    return 0.5 ** (global_batch / min(halflife_samples, max(samples_seen / 20, 1e-8)))
