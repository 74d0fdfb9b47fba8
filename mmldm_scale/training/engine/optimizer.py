"""AdamW that also keeps moving averages of the weights (EMA), and can skip a step.

The averages are part of the optimizer's state, like Adam's moments. DeepSpeed therefore shards, offloads, saves and
loads them, and does not change them in a step that it skips. So every ZeRO stage has float32 averages without a gather
and without code of its own. Each average takes 4 bytes per parameter, which ZeRO 1 to 3 divide by the number of
processes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

AVERAGE = "ema_"  # prefix of the averages' keys in a parameter's state


def average_key(length: float) -> str:
    """Return the key of the average of ``length`` in a parameter's state."""
    return f"{AVERAGE}{length}"


def average_lengths(keys: Iterable[str]) -> list[float]:
    """Return the lengths of the averages among the ``keys`` of a parameter's state."""
    return [float(key.removeprefix(AVERAGE)) for key in keys if key.startswith(AVERAGE)]


class EMAAdamW(torch.optim.AdamW):
    """torch's AdamW whose state also holds moving averages of each parameter, under :func:`average_key`.

    Set ``group["ema_decays"]``, one for each of ``lengths``, before a step. The averages start at the weights before
    the first step. With empty ``lengths`` this is plain AdamW.

    Attributes:
        must_skip: called in each step; if it returns True, the step changes nothing.
    """

    def __init__(self, params: Iterable[nn.Parameter], lengths: Sequence[float], **options: Any) -> None:
        super().__init__(params, **options)
        self.lengths = tuple(lengths)
        self.must_skip: Callable[[], bool] = lambda: False
        for group in self.param_groups if self.lengths else ():
            group["ema_decays"] = [0.0] * len(self.lengths)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take AdamW's step and update the averages, or do neither."""
        if self.must_skip():
            return None
        keys = [average_key(length) for length in self.lengths]
        without_average = [
            p for group in self.param_groups for p in _with_gradient(group) if keys and keys[0] not in self.state[p]
        ]
        initial_averages = [{key: p.detach().clone() for key in keys} for p in without_average]
        loss = super().step(closure)
        for parameter, averages in zip(without_average, initial_averages, strict=True):
            self.state[parameter] |= averages  # only now: AdamW initialises its own state only while it is empty
        for group in self.param_groups if keys else ():
            parameters = _with_gradient(group)
            for key, decay in zip(keys, group["ema_decays"], strict=True):
                if parameters:
                    torch._foreach_lerp_([self.state[p][key] for p in parameters], parameters, 1.0 - decay)
        return loss


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [p for p in group["params"] if p.grad is not None]


def learning_rate(base: float, warmup_samples: int, samples_seen: int) -> float:
    """Return the learning rate of the step that ends at ``samples_seen``: ``base`` after a linear warm-up."""
    return base * min(1.0, samples_seen / warmup_samples) if warmup_samples else base
