"""The DeepSpeed engine of a run: our configuration turned into DeepSpeed's, and the weights read back out.

``build()`` returns a real ``DeepSpeedEngine``; the loop calls its ``backward`` and ``step`` itself.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.engine.distributed import World, limit_every_group
from mmldm_scale.training.engine.optimizer import EMAAdamW, average_key

TRAINED = "trained"
OURS = {
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
    together = config.micro_batch * world_size
    if config.global_batch % together:
        fits = [m for m in range(1, config.micro_batch + 1) if config.global_batch % (m * world_size) == 0]
        hint = f"training.micro_batch={fits[-1]} fits" if fits else f"a multiple of {world_size} fits"
        raise UserError(
            f"training.global_batch: {config.global_batch} samples do not divide into micro-batches of "
            f"{config.micro_batch} on {world_size} processes; {hint}"
        )
    for key, instead in OURS.items():
        if key in config.deepspeed:
            raise UserError(f"training.deepspeed.{key}: set {instead} instead")
    added = config.deepspeed.get("zero_optimization")
    if isinstance(added, dict) and added.get("round_robin_gradients"):  # it shuffles the flat tensors, not their maps
        raise UserError(
            "training.deepspeed.zero_optimization.round_robin_gradients: with it DeepSpeed takes one parameter for "
            "another where averages are gathered or partitions cut anew; leave it out"
        )
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    derived = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.global_batch // together,
        "gradient_clipping": config.gradient_clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW with one more state
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,  # the monitor speaks
    }
    return _merged(derived, config.deepspeed)


def build(module: nn.Module, config: TrainingConfig, world: World, averaged: bool = True) -> deepspeed.DeepSpeedEngine:
    """Return the engine that trains the parameters of ``module`` that require gradients, and averages them if asked to.

    Raises:
        UserError: the precision or batch cannot work on these processes.
    """
    if config.precision == "fp16" and world.device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; fp32 or bf16 fit here")
    settings = deepspeed_config(config, world.size)
    if any(getattr(part, "recomputation", None) == "selective" for part in module.modules()):
        # ZeRO-3's own linear layers add the bias in place, to the very product that selective recomputation keeps:
        # computed again, they would add it a second time.
        settings["zero_optimization"]["memory_efficient_linear"] = False
    parameters = [p for p in module.parameters() if p.requires_grad]
    on_gpu = world.device.type == "cuda" and not config.offload_optimizer
    kind = functools.partial(EMAAdamW, lengths=config.ema_lengths) if averaged else torch.optim.AdamW
    optimizer = kind(
        parameters,
        lr=0.0,  # the loop sets it before each step
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=on_gpu,
    )
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, optimizer=optimizer, config=settings)
    optimizer.state.clear()  # ZeRO 0 in low precision has taken an empty step, which Adam would count as its first
    limit_every_group(config.collective_timeout)
    return engine


def base_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.AdamW:
    """Return our optimizer from inside DeepSpeed's wrappers."""
    return engine.basic_optimizer


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return {"gradient_norm": that of the last step, over all processes}, or nothing for ZeRO 0 in float32."""
    norm = engine.get_global_grad_norm()
    return {} if norm is None else {"gradient_norm": float(norm)}


def loss_scale(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return {"loss_scale": what DeepSpeed multiplies the next loss by} in fp16, else nothing."""
    return {"loss_scale": float(engine._get_optimizer_loss_scale())} if engine.fp16_enabled() else {}


@contextmanager
def uncounted_backward(module: nn.Module) -> Iterator[None]:
    """Let ``torch.autograd.grad`` go back through ``module`` without ZeRO-3 taking it for the step's backward pass.

    ZeRO-3 gathers a layer's weights in the backward pass as often as the layer ran forward, and releases them when as
    many gradients came back as went in. It counts both down, so that after one pass a second finds no weights.
    """
    counts = [
        (part, name, part.__dict__[name])
        for part in module.modules()
        for name in ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
        if name in part.__dict__
    ]
    yield
    for part, name, count in counts:
        setattr(part, name, count)


def trained_names(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """Return the names of the module's parameters that the engine trains."""
    return [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def save(
    engine: deepspeed.DeepSpeedEngine, folder: Path, tag: str, keep: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Have DeepSpeed call ``keep(path, state)`` in place of writing a file to ``folder / tag``; all ranks call this.

    Under ``TRAINED`` they hold the names of the trained parameters too, which ZeRO 0 would not write. The tensors are
    those in use.
    """
    engine.checkpoint_engine.save = lambda state_dict, path: keep(Path(path), state_dict)
    engine.checkpoint_engine.makedirs = lambda *_, **__: None
    engine._copy_recovery_script = lambda _: None
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False, client_state={TRAINED: trained_names(engine)})


def averaged_state(engine: deepspeed.DeepSpeedEngine, world: World, length: float | None = None) -> dict[str, Tensor]:
    """Copy the average of every trained parameter and the module's buffers, float32, to the first rank's CPU.

    Of the averages it is that of ``length``, or else the first one. All ranks must call this, after at least one step;
    the others get an empty dictionary.
    """
    key = average_key(length or base_optimizer(engine).lengths[0])
    _link_state(engine)
    state: dict[str, Tensor] = {}
    module = engine.module
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    masters = _unsharded_masters(engine, [p for _, p in trained])
    for name, parameter in trained:
        if parameter in masters:
            average = base_optimizer(engine).state[masters[parameter]][key]
        else:
            average = safe_get_full_optimizer_state(parameter, key)  # a collective
        if world.is_rank0:
            state[name] = average.detach().reshape(_shape(parameter)).to("cpu", torch.float32, copy=True)
    if world.is_rank0:
        persistent = module.state_dict().keys() - dict(module.named_parameters()).keys()
        state |= {name: b.detach().to("cpu", copy=True) for name, b in module.named_buffers() if name in persistent}
    return state


def _link_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """Have ZeRO 1 and 2 find each parameter's state.

    They look for it once, after the first step: too early if that one was skipped, and too late for a checkpoint that
    comes before it.
    """
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _unsharded_masters(engine: deepspeed.DeepSpeedEngine, parameters: list[nn.Parameter]) -> dict[Tensor, Tensor]:
    """Map parameters to the float32 tensors that the optimizer steps, where DeepSpeed does not shard them (ZeRO 0)."""
    if any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in parameters):
        return {}
    stepped = [p for group in base_optimizer(engine).param_groups for p in group["params"]]
    return dict(zip(parameters, stepped, strict=True))


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor in its place


def _merged(base: dict[str, Any], additions: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in additions.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
