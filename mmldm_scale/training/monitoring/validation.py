"""The loss on held-out samples, which training does not learn from, with the weights as they are.

It is a function of the weights and of the samples' own noise and timesteps, so it is the same, up to the rounding of
sums, on any number of processes and with any micro-batch, and comparable between moments and runs.
"""

import math
from collections.abc import Callable

import deepspeed
import torch
from torch.utils.data import default_collate

from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import ValidationSet


def evaluate(
    engine: deepspeed.DeepSpeedEngine,
    validation_set: ValidationSet,
    micro_batch: int,
    world: World,
    alive: Callable[[], None],
) -> dict[str, float]:
    """Return the means over ``validation_set`` of what the module returns, as "validation/NAME"; all ranks call this.

    Every rank goes through the module as often as the others, which ZeRO-3 needs: the last rounds are filled up with
    samples that do not count.

    Args:
        alive: called before each micro-batch.
    """
    count, sums = len(validation_set), {}
    engine.eval()
    with torch.no_grad():
        for number in range(math.ceil(count / (micro_batch * world.size))):
            alive()
            first = (number * world.size + world.rank) * micro_batch
            real = min(max(count - first, 0), micro_batch)
            batch = default_collate(validation_set.__getitems__([i % count for i in range(first, first + micro_batch)]))
            results = engine.module({name: tensor.to(world.device) for name, tensor in batch.items()})
            for name, values in results.items():
                sums.setdefault(name, []).append(metric_means.sums([values[:real]]))
    engine.train()
    names = sorted(sums)
    totals = torch.stack([torch.stack(sums[name]).sum(dim=0) for name in names])  # (names, 2)
    found = metric_means.means(names, world.sum(totals.flatten().tolist()))
    return {f"validation/{name}": value for name, value in found.items()}
