"""AdamW that also keeps averages of the weights, and can skip a step.

The averages are in the optimizer's state beside Adam's moments. So DeepSpeed shards, offloads, saves and loads them
with these, and leaves them alone in a step that it skips: every ZeRO stage has float32 EMAs without a gather and
without code of its own. Each takes 4 bytes a parameter, which ZeRO 1 to 3 divide by the number of processes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

AVERAGE = "ema_"


def average_key(length: float) -> str:
    """Return under which key a parameter's state holds its average of ``length``."""
    return f"{AVERAGE}{length}"


def average_lengths(keys: Iterable[str]) -> list[float]:
    """Return the lengths of the averages among the ``keys`` of a parameter's state."""
    return [float(key.removeprefix(AVERAGE)) for key in keys if key.startswith(AVERAGE)]


class EMAAdamW(torch.optim.AdamW):
    """torch's AdamW whose state holds, under :func:`average_key`, moving averages of each parameter.

    Set ``group["ema_decays"]``, one for each of ``lengths``, before a step. The averages start at the weights before
    the first step. ``lengths`` may be empty: then it is AdamW.

    Attributes:
        must_skip: called in each step; where it returns True, the step changes nothing.
    """

    def __init__(self, params: Iterable[nn.Parameter], lengths: Sequence[float], **options: Any) -> None:
        super().__init__(params, **options)
        self.lengths = tuple(lengths)
        self.must_skip: Callable[[], bool] = lambda: False
        for group in self.param_groups if self.lengths else ():
            group["ema_decays"] = [0.0] * len(self.lengths)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take AdamW's step, then move the averages towards the new weights; or skip both."""
        if self.must_skip():
            return None
        keys = [average_key(length) for length in self.lengths]
        fresh = [p for group in self.param_groups for p in _stepped(group) if keys and keys[0] not in self.state[p]]
        before = [{key: p.detach().clone() for key in keys} for p in fresh]
        loss = super().step(closure)
        for parameter, averages in zip(fresh, before, strict=True):
            self.state[parameter] |= averages  # not earlier: Adam would take the state for its own
        for group in self.param_groups if keys else ():
            stepped = _stepped(group)
            for key, decay in zip(keys, group["ema_decays"], strict=True):
                if stepped:
                    torch._foreach_lerp_([self.state[p][key] for p in stepped], stepped, 1.0 - decay)
        return loss


def _stepped(group: dict[str, Any]) -> list[Tensor]:
    return [p for p in group["params"] if p.grad is not None]


def learning_rate(base: float, warmup_samples: int, samples_seen: int) -> float:
    """Return the learning rate of the step that ends at ``samples_seen``: a linear rise, then constant."""
    return base * min(1.0, samples_seen / warmup_samples) if warmup_samples else base
