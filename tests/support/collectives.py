"""What training on CPU sends, in several processes: bytes by model, ZeRO stage and accumulation, as DeepSpeed logs it.

``record(file, "key=value", …)`` takes the overrides of a DiT's training; the autoencoder is the tests' own, with its
discriminator.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import deepspeed

from mmldm_scale.config import TrainingConfig, load
from mmldm_scale.planning import memory
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import outline
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World, start, stop
from mmldm_scale.training.step import DiscriminatorStep, MicroStep
from mmldm_scale.training.trainable import StepOutline
from tests.support.tiny_models.autoencoder_trainable import settings_of, step_outline

CASES = {  # ZeRO stage, accumulation; the autoencoder's many layers take long with ZeRO-3
    "dit": ((1, 2), (2, 1), (2, 2), (3, 2)),
    "autoencoder": ((1, 2), (3, 1)),
}
SENT = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # times (N - 1) / N of the message


def of_a_step(outline: StepOutline, training: TrainingConfig, world: World) -> float:
    """Return the bytes that a process sends in a step."""
    built = [engines.build(network, how, world) for network, how in memory.trained_networks(outline, training)]
    engine, *others = built
    discriminator = None
    if others:
        discriminator = DiscriminatorStep(outline.discriminator, others[0], others[0].backward)
    micro_step = MicroStep(engine, engine.backward, outline.term_weights, discriminator)
    outline.begin_step(replace(outline.info, logged=False))
    log = deepspeed.comm.comm.comms_logger
    for _ in range(2):  # the first step is not like the others
        log.comms_dict.clear()
        for _ in range(engine.gradient_accumulation_steps()):
            micro_step(outline.batch)
            for each in built:
                each.step()
    total = 0.0
    for name, factor in SENT.items():
        for size, (count, *_) in log.comms_dict.get(name, {}).items():
            whole = size * (world.size if name == "all_gather_into_tensor" else 1)  # DeepSpeed logs a process's part
            total += factor * count * whole * (world.size - 1) / world.size
    return total


def two_process_config(config: TrainingConfig, stage: int, accumulation: int) -> TrainingConfig:
    """Return ``config`` for two processes with a micro-batch of one sample each."""
    settings = {"comms_logger": {"enabled": True, "prof_all": True, "verbose": False}}
    settings["zero_optimization"] = {"stage3_param_persistence_threshold": 0}  # no weight of a real model is that small
    batch = 2 * accumulation
    intervals = dict.fromkeys(
        ("global_batch", "total_samples", "log_every", "preview_every", "checkpoint_every"), batch
    )
    return replace(config, micro_batch=1, zero_stage=stage, **intervals, deepspeed=settings)


def record(file: str, *overrides: str) -> int:
    """Write to ``file``, as JSON, the bytes that a process sends in a step: by "model stage accumulation"."""
    world = start(60.0)
    dit, autoencoder = load(DiTTraining, [], overrides), settings_of(micro_batch=1, precision="bf16")
    makers: dict[str, Callable[[], StepOutline]] = {
        "dit": lambda: outline(dit, device="cpu"),
        "autoencoder": lambda: step_outline(autoencoder, "cpu"),
    }
    sent = {}
    for model, config in (("dit", dit.training), ("autoencoder", autoencoder.training)):
        for stage, accumulation in CASES[model]:
            training = two_process_config(config, stage, accumulation)
            sent[f"{model} {stage} {accumulation}"] = of_a_step(makers[model](), training, world)
    if world.is_rank0:
        Path(file).write_text(json.dumps(sent))
    stop()
    return 0
