"""The loss on held-out samples with the current weights, not the averaged ones.

It depends only on the weights and on each sample's own noise and timesteps. So it is the same, up to rounding of sums,
for any number of processes and any micro-batch, and comparable between steps and runs.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import StepOutput, ValidationSet, weighted


def evaluate(
    engine: Engine,
    validation_set: ValidationSet,
    term_weights: Mapping[str, float],
    micro_batch: int,
    world: World,
    heartbeat: Callable[[], None],
) -> dict[str, float]:
    """Return the means over ``validation_set`` of the module's values, as "validation/TAG"; all ranks call this.

    All ranks call the module equally often, as ZeRO-3 requires: the last micro-batches are filled with samples that do
    not count.

    Args:
        term_weights: of the terms of the loss.
        heartbeat: called before each micro-batch.
    """
    count, sums = len(validation_set), dict[str, list[Tensor]]()
    engine.eval()
    with torch.no_grad():
        for number in range(math.ceil(count / (micro_batch * world.size))):
            heartbeat()
            first = (number * world.size + world.rank) * micro_batch
            real = min(max(count - first, 0), micro_batch)
            indices = [index % count for index in range(first, first + micro_batch)]
            batch = default_collate(validation_set.__getitems__(indices))
            output: StepOutput = engine.module({name: tensor.to(world.device) for name, tensor in batch.items()})
            for tag, values in (output.logged() | weighted(output, term_weights)).items():
                sums.setdefault(tag, []).append(metric_means.sums([values[:real]]))
    engine.train()
    tags = sorted(sums)
    totals = torch.stack([torch.stack(sums[tag]).sum(dim=0) for tag in tags])  # (tags, 2)
    means = metric_means.means(tags, world.sum(totals.flatten().tolist()))
    return {f"validation/{tag}": value for tag, value in means.items()}
