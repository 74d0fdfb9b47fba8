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
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE
from mmldm_scale.planning import memory
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World, start, stop
from tests.support.tiny_models.autoencoder_trainable import micro_step, settings_of

CASES = {  # ZeRO stage, accumulation; the autoencoder's many layers take long with ZeRO-3
    "dit": ((1, 2), (2, 1), (2, 2), (3, 2)),
    "autoencoder": ((1, 2), (2, 2), (3, 1)),
}
SENT = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # times (N - 1) / N of the message


def of_a_step(step: memory.MicroStep, training: TrainingConfig, world: World) -> float:
    """Return the bytes that a process sends in a step."""
    built = [engines.build(module, how, world) for module, how in memory.engines(step, training)]
    log = deepspeed.comm.comm.comms_logger
    for _ in range(2):  # the first step is not like the others
        log.comms_dict.clear()
        for _ in range(built[0].gradient_accumulation_steps()):
            _micro_step(step, *built)
            for engine in built:
                engine.step()
    total = 0.0
    for name, factor in SENT.items():
        for size, (count, *_) in log.comms_dict.get(name, {}).items():
            whole = size * (world.size if name == "all_gather_into_tensor" else 1)  # DeepSpeed logs a process's part
            total += factor * count * whole * (world.size - 1) / world.size
    return total


def _micro_step(
    step: memory.MicroStep,
    engine: deepspeed.DeepSpeedEngine,
    discriminator: deepspeed.DeepSpeedEngine | None = None,
) -> None:
    results = engine(step.batch)
    engine.backward(results.loss.mean())
    if discriminator is not None:  # the model's term sends nothing
        shown = [results.discriminator_inputs[name].detach() for name in ("real", "fake", "weight")]
        discriminator.backward(discriminator(*shown).loss.mean())


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
    makers: dict[str, Callable[[], memory.MicroStep]] = {
        "dit": lambda: memory.dit_step(dit, AUDIO_SHAPE, VIDEO_SHAPE, "cpu"),
        "autoencoder": lambda: micro_step(autoencoder, "cpu"),
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
