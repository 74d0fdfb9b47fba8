"""A network for the tests of predicted memory, and the bytes that an engine holds of it in several processes.

``record(file)`` tries every ZeRO stage and precision that work without a GPU.
"""

import gc
import json
import time
from pathlib import Path

import torch
from torch import nn

from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World, start, stop

BUCKET = 40_000  # numbers


class Net(nn.Module):
    """Some parameters are frozen; all are too large, even when split, to be taken for one of DeepSpeed's counters."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(256, 256).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(256, 333), nn.GELU(), nn.Linear(333, 256))
        self.register_buffer("scale", torch.ones(512))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.frozen(x.to(self.frozen.weight.dtype))).float().square().mean()


def settings(stage: int, precision: str) -> TrainingConfig:
    zero = {"reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    batch = 4
    return TrainingConfig(
        global_batch=batch,
        micro_batch=1,
        total_samples=batch,
        log_every=batch,
        checkpoint_every=batch,
        preview_every=batch,
        precision=precision,
        zero_stage=stage,
        deepspeed={"zero_optimization": zero} if stage else {},
    )


def held_bytes(known: set[int]) -> int:
    """Return the bytes of all tensors of this process, of 256 and more each, but for those ``known``."""
    return sum(size for address, size in storages().items() if address not in known and size >= 256)


def storages() -> dict[int, int]:
    time.sleep(0.2)  # gloo's threads let go of a collective's tensors a little after it has returned
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
    tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
    tensors = [tensor for tensor in tensors if tensor.device.type == "cpu"]  # DeepSpeed keeps shapes as "meta" tensors
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def measure(world: World, stage: int, precision: str) -> list[tuple[int, int]]:
    """Return, by rank, what is held after a step, and after the next one's first micro-batch."""
    x = torch.randn(1, 256)
    before = set(storages())
    engine = engines.build(Net(), settings(stage, precision), world)
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(engine(x))
        engine.step()
    stepped = held_bytes(before)
    engine.backward(engine(x))
    return world.gather((stepped, held_bytes(before)))


def record(file: str) -> int:
    """Write what each process held to ``file``, as JSON by stage and precision."""
    world = start(60.0)
    held = {f"{stage} {name}": measure(world, stage, name) for stage in range(4) for name in ("fp32", "bf16")}
    if world.is_rank0:
        Path(file).write_text(json.dumps(held))
    stop()
    return 0
