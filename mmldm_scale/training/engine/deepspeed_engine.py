"""The DeepSpeed engine of a run: made from our configuration, and its averaged weights read back.

engine = build(module, config.training, world)  # a real DeepSpeedEngine
engine.backward(engine(batch).loss.mean())
engine.step()
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.engine import deepspeed_internals
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World, limit_every_group
from mmldm_scale.training.engine.optimizer import EMAAdamW, average_key

TRAINED = "trained"  # key of a checkpoint's client state: names of the trained parameters
OURS = {  # keys of DeepSpeed's configuration that are set from these keys of ours
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "training.gradient_clip",
    "optimizer": "training.learning_rate, betas and weight_decay",
    "scheduler": "training.warmup_samples",
}


def deepspeed_config(config: TrainingConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for ``config`` on ``world_size`` processes, raw additions merged in.

    Raises:
        UserError: the batch does not divide over the processes, or an addition cannot work here.
    """
    _check(config, world_size)
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    derived = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.global_batch // (config.micro_batch * world_size),
        "gradient_clipping": config.gradient_clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # EMAAdamW
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,  # the logger prints instead
    }
    return _merged(derived, config.deepspeed)


def _check(config: TrainingConfig, world_size: int) -> None:
    """Raise UserError if the batch does not divide over the processes, or ``config.deepspeed`` cannot work here."""
    if config.global_batch % (config.micro_batch * world_size):
        possible = [m for m in range(1, config.micro_batch + 1) if config.global_batch % (m * world_size) == 0]
        hint = f"try training.micro_batch={possible[-1]}" if possible else f"it must be a multiple of {world_size}"
        raise UserError(
            f"training.global_batch: {config.global_batch} is no multiple of training.micro_batch = "
            f"{config.micro_batch} times {world_size} processes; {hint}"
        )
    for key, ours in OURS.items():
        if key in config.deepspeed:
            raise UserError(f"training.deepspeed.{key}: set {ours} instead")
    zero = config.deepspeed.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("round_robin_gradients"):  # it reorders the flat tensors, but not their maps
        raise UserError(
            "training.deepspeed.zero_optimization.round_robin_gradients: must be left out, since with it DeepSpeed "
            "confuses parameters when averages are gathered or partitions are changed"
        )


def build(module: nn.Module, config: TrainingConfig, world: World, averaged: bool = True) -> Engine:
    """Return the engine that trains the parameters of ``module`` that require gradients.

    Args:
        averaged: whether it keeps moving averages of them (EMA).

    Raises:
        UserError: the precision or batch cannot work on these processes.
        ValueError: ``module`` itself has parameters (see :class:`mmldm_scale.training.trainable.Trainable`).
    """
    if any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"{type(module).__name__}: its parameters must belong to sub-modules")
    if config.precision == "fp16" and world.device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; on a CPU it must be fp32 or bf16")
    settings = deepspeed_config(config, world.size)
    if any(getattr(part, "recomputation", None) == "selective" for part in module.modules()):
        # ZeRO-3's own linear layers add the bias in place to the product that selective recomputation keeps, and
        # would add it again in the recomputation.
        settings["zero_optimization"]["memory_efficient_linear"] = False
    parameters = [p for p in module.parameters() if p.requires_grad]
    settings["zero_optimization"]["reduce_bucket_size"] = config.reduce_bucket(sum(p.numel() for p in parameters))
    on_gpu = world.device.type == "cuda" and not config.offload_optimizer
    optimizer = EMAAdamW(
        parameters,
        lengths=config.ema_lengths if averaged else [],
        lr=0.0,  # the loop sets it before each step
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=on_gpu,
    )
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, optimizer=optimizer, config=settings)
    optimizer.state.clear()  # ZeRO 0 in low precision has taken an empty step, which Adam counts
    limit_every_group(config.collective_timeout)
    return engine


def base_optimizer(engine: Engine) -> EMAAdamW:
    """Return our optimizer from inside DeepSpeed's wrappers."""
    return engine.basic_optimizer


def gradient_norm(engine: Engine) -> float | None:
    """Return the gradient norm of the last step over all processes; None for ZeRO 0 in float32."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def loss_scale(engine: Engine) -> float | None:
    """Return what DeepSpeed multiplies the next loss by in fp16; None in other precisions."""
    return deepspeed_internals.loss_scale(engine) if engine.fp16_enabled() else None


def trained_names(engine: Engine) -> list[str]:
    """Return the names of the module's parameters that the engine trains."""
    return [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def save(engine: Engine, folder: Path, tag: str, keep: Callable[[Path, dict[str, Any]], None]) -> None:
    """Have DeepSpeed call ``keep(path, state)`` in place of writing a file to ``folder / tag``; all ranks call this.

    The states hold the names of the trained parameters under ``TRAINED``, which ZeRO 0 would not write. Their tensors
    are the engine's own, not copies.
    """
    deepspeed_internals.hand_over_checkpoint(engine, folder, tag, {TRAINED: trained_names(engine)}, keep)


def averaged_state(engine: Engine, world: World, length: float | None = None) -> dict[str, Tensor]:
    """Copy the average of every trained parameter and the module's buffers, float32, to rank 0's CPU.

    All ranks must call this, after at least one step; the others get an empty dictionary.

    Args:
        length: of the average; None: the first of ``training.ema_lengths``.
    """
    key = average_key(length or base_optimizer(engine).lengths[0])
    deepspeed_internals.link_optimizer_state(engine)
    state: dict[str, Tensor] = {}
    module: nn.Module = engine.module
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    masters = _unsharded_masters(engine, [p for _, p in trained])
    for name, parameter in trained:
        if parameter in masters:
            average = base_optimizer(engine).state[masters[parameter]][key]
        else:
            average = safe_get_full_optimizer_state(parameter, key)  # a collective
        if world.is_rank0:
            shape = deepspeed_internals.whole_shape(parameter)
            state[name] = average.detach().reshape(shape).to("cpu", torch.float32, copy=True)
    if world.is_rank0:
        persistent = module.state_dict().keys() - dict(module.named_parameters()).keys()
        state |= {name: b.detach().to("cpu", copy=True) for name, b in module.named_buffers() if name in persistent}
    return state


def _unsharded_masters(engine: Engine, parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return the float32 tensor that the optimizer updates for each parameter; empty with ZeRO 1 to 3."""
    if any(map(deepspeed_internals.is_sharded, parameters)):
        return {}
    masters = [p for group in base_optimizer(engine).param_groups for p in group["params"]]
    return dict(zip(parameters, masters, strict=True))


def _merged(base: dict[str, Any], additions: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``additions``, nested dictionaries merged."""
    result = dict(base)
    for key, value in additions.items():
        is_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if is_nested else value
    return result
