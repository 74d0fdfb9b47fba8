"""Every private name of DeepSpeed and torch.distributed that this project uses, each behind one function.

:func:`check_version` refuses versions that these names were not read in. To support another version, read each name
again in its source, run ``make test``, and change :data:`VERSIONS`.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import deepspeed
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime import compiler
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError

Engine: TypeAlias = DeepSpeedEngine
VERSIONS = SpecifierSet(">=0.19,<0.20")  # of DeepSpeed, in which the names below were read


def check_version() -> None:
    """Raise UserError if the installed DeepSpeed is none of :data:`VERSIONS`."""
    version = deepspeed.__version__.partition("+")[0]
    if not VERSIONS.contains(version, prereleases=True):
        raise UserError(f"deepspeed: version {version} is installed; it must be {VERSIONS}")


def compile_no_operators() -> None:
    """Keep DeepSpeed from trying its compilers.

    That takes a second, and a minute on CPUs, where it compiles a shared-memory all-reduce that only its inference
    uses. The attribute is where it records which of its operators can be built.
    """
    deepspeed.ops.__compatible_ops__ = {}


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, which its ZeRO optimizers import, without passing it to torch.compile.

    No optimizer here is Muon, and torch.compile imports Inductor: two seconds of CPU time in every process.
    """
    compile_function = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_function


def set_timeout_of_all_groups(seconds: float) -> None:
    """Give ``seconds`` to every process group, those that DeepSpeed made for itself included."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def collectives_begun(world_size: int) -> int:
    """Return how many collectives of all ``world_size`` ranks this process has begun."""
    groups = dist.distributed_c10d._world.pg_map
    own: list[Any] = [group for group in groups if group.size() == world_size]
    return sum(group._get_sequence_number_for_group() for group in own)


def loss_scale(engine: Engine) -> float:
    """Return what DeepSpeed multiplies the next loss by (fp16)."""
    return float(engine._get_optimizer_loss_scale())


def norm_of_this_step(engine: Engine) -> float | None:
    """Return the gradient norm inside ``engine.step()``, before the optimizer steps; None for ZeRO 0 in float32."""
    norm = getattr(engine.optimizer, "_global_grad_norm", None)
    return None if norm is None else float(norm)


@contextmanager
def inner_backward(module: nn.Module) -> Iterator[None]:
    """Let ``torch.autograd.grad`` go back through ``module`` without ZeRO-3 taking it for the step's backward pass.

    ZeRO-3 gathers a layer's weights in the backward pass as often as the layer ran forward, and releases them when as
    many gradients arrived as outputs were used. It counts both down, so that a second pass would find no weights.
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


def hand_over_checkpoint(
    engine: Engine, folder: Path, tag: str, client_state: dict[str, Any], keep: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Have DeepSpeed call ``keep(path, state)`` in place of writing its files; all ranks call this."""
    engine.checkpoint_engine.save = lambda state_dict, path: keep(Path(path), state_dict)
    engine.checkpoint_engine.makedirs = lambda *_, **__: None
    engine._copy_recovery_script = lambda _: None
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False, client_state=client_state)


def link_optimizer_state(engine: Engine) -> None:
    """Have ZeRO 1 and 2 look up each parameter's optimizer state.

    They do so once, after the first step: too early if that step was skipped, and too late for a checkpoint before it.
    """
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def is_sharded(parameter: nn.Parameter) -> bool:
    """Return whether ZeRO 1 to 3 divides the state of ``parameter`` over the processes."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of ``parameter``; ZeRO-3 leaves an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def zero3_groups(engine: Engine) -> list[list[nn.Parameter]]:
    """Return the parameters of each flat tensor of ZeRO-3, in their order."""
    return engine.optimizer.fp16_groups


def flat_master_weights(engine: Engine) -> list[Tensor]:
    """Return the flat float32 tensors that this process steps."""
    stepped = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    return stepped or engine.optimizer.fp32_partitioned_groups_flat  # which ZeRO-3 lends the optimizer for a step


def own_fragment(parameter: nn.Parameter) -> Any | None:
    """Return where ZeRO 1 or 2 keeps this process's part of ``parameter``; None if it keeps none of it."""
    return getattr(parameter, "_hp_mapping", None)


def load_optimizer_state(engine: Engine, state: dict[str, Any], world_size: int) -> None:
    """Load this process's optimizer ``state`` and make the working weights of its master weights."""
    optimizer, shares_weights = engine.optimizer, engine.zero_optimization_partition_weights()
    if shares_weights:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict([state] * world_size, load_from_fp32_weights=True)
    if shares_weights:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
