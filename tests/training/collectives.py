"""A program that prints what a DiT's training on CPU sends: bytes by ZeRO stage and accumulation, as DeepSpeed logs it.

``torchrun … collectives.py key=value …`` takes the overrides of a training.
"""

import json
import sys
from dataclasses import replace

import deepspeed

from mmldm_scale.config import DiTTraining, load
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE
from mmldm_scale.training import engine as engines
from mmldm_scale.training.distributed import World, start, stop
from mmldm_scale.training.memory import dit_step

SENT = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # times (N - 1) / N of the message


def of_a_step(config: DiTTraining, world: World) -> float:
    """Return the bytes that a process sends in a step."""
    step = dit_step(config, AUDIO_SHAPE, VIDEO_SHAPE, "cpu")
    engine = engines.build(step.module, config.training, world)
    log = deepspeed.comm.comm.comms_logger
    for _ in range(2):  # the first step is not like the others
        log.comms_dict.clear()
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(step.batch)["loss"].mean())
            engine.step()
    total = 0.0
    for name, factor in SENT.items():
        for size, (count, *_) in log.comms_dict.get(name, {}).items():
            whole = size * (world.size if name == "all_gather_into_tensor" else 1)  # DeepSpeed logs a process's part
            total += factor * count * whole * (world.size - 1) / world.size
    return total


if __name__ == "__main__":
    world = start(60.0)
    given, found = load(DiTTraining, [], sys.argv[1:]), {}
    settings = {"comms_logger": {"enabled": True, "prof_all": True, "verbose": False}}
    settings["zero_optimization"] = {"stage3_param_persistence_threshold": 0}  # no weight of a real model is that small
    for stage in (1, 2, 3):
        for accumulation in (1, 2):
            batch = 2 * accumulation
            intervals = dict.fromkeys(("global_batch", "total_samples", "log_every", "preview_every"), batch)
            training = replace(
                given.training, zero_stage=stage, checkpoint_every=batch, **intervals, deepspeed=settings
            )
            found[f"{stage} {accumulation}"] = of_a_step(replace(given, training=training), world)
    if world.first:
        print(json.dumps(found))
    stop()
