"""What a training takes of GPUs that one may not have yet: memory, traffic between them, time.

    plans = find_plans(of_dit("DiT-L", config), CLUSTERS["a800"], nodes=16)  # those that fit, the best first

Tried are the settings that do not change what is learned: ZeRO stage, activation checkpointing and micro-batch. Memory
is that of :mod:`~mmldm_scale.planning.memory`, arithmetic is counted by running the model on shapes, traffic is what
DeepSpeed sends by stage. Time is an estimate from these and from what :class:`Cluster` assumes: the share of their peak
at which the GPUs compute, and the speed of the links. Computing and sending are taken to follow one another, as they do
in DeepSpeed's ZeRO-1 and 2 by default; ZeRO-3 may hide a part of what it sends.
"""

import bisect
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.models.recompute import Recomputation
from mmldm_scale.planning.hardware import Cluster
from mmldm_scale.planning.memory import MicroStep, Prediction, States, activations, engines, held
from mmldm_scale.planning.memory_table import GIB
from mmldm_scale.planning.workload import Workload, arithmetic
from mmldm_scale.training.monitoring.throughput import PEAK_TFLOPS

OWN = 2 * GIB  # what CUDA, NCCL and cuDNN take of a GPU for themselves
WASTE = 0.06  # of what is asked of it, PyTorch's allocator takes so much more
STAGES = (1, 2, 3)
REUSE = 1_000_000_000  # DeepSpeed's default of stage3_max_reuse_distance
CLOSE = 1.1  # the estimate of a step's time is no better than that


@dataclass(frozen=True)
class Plan:
    """One way to train.

    Attributes:
        settings: as ``mmldm train`` takes them.
        memory: bytes on each GPU at the worst instant, by what they are for.
        traffic: bytes that each GPU sends in a step.
        computing, sending, updating: seconds of a step: forward and backward passes; gradients and weights between the
            GPUs; the optimizer, which does nothing but read and write memory.
        mfu: share of the peak that goes into the model, recomputation not counted.
    """

    zero_stage: int
    recomputation: Recomputation
    micro_batch: int
    accumulation: int
    settings: str
    memory: dict[str, float]
    traffic: float
    computing: float
    sending: float
    updating: float
    mfu: float

    @property
    def total(self) -> float:
        """Bytes of a GPU's memory."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.computing + self.sending + self.updating


def find_plans(workload: Workload, cluster: Cluster, nodes: int, gpus_per_node: int = 8) -> list[Plan]:
    """Return the plans for ``workload`` that fit into memory, the quickest first.

    Those that are expected to be within CLOSE of the quickest count as equals: of these the simplest comes first.

    Raises:
        UserError: the batch does not divide over the GPUs, or not into the groups of the contrastive loss.
    """
    training = replace(workload.training, precision=cluster.precision)
    _check_division(training.global_batch, nodes, gpus_per_node)
    fleet = Fleet(cluster, nodes, gpus_per_node)
    sizes = list(_micro_batches(workload, training.global_batch // fleet.gpus, fleet.gpus))
    plans = [plan for mode in workload.modes for plan in _fitting(workload, training, fleet, mode, sizes)]
    close = CLOSE * min((plan.seconds for plan in plans), default=0.0)

    def order(plan: Plan) -> tuple:
        simplicity = list(workload.modes).index(plan.recomputation), plan.zero_stage
        return (0, *simplicity) if plan.seconds <= close else (1, plan.seconds, *simplicity)

    return sorted(plans, key=order)


@dataclass(frozen=True)
class Fleet:
    """The GPUs to train on."""

    cluster: Cluster
    nodes: int
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        """How many there are."""
        return self.nodes * self.gpus_per_node

    @property
    def slowest_link(self) -> float:
        """GB/s of the link that a ring through all of them waits for."""
        within, between = self.cluster.link, self.cluster.network
        return within if self.nodes == 1 else min(within, between)

    def peak(self, dtype: torch.dtype) -> float:
        """Dense peak of one GPU in FLOP/s."""
        return PEAK_TFLOPS[self.cluster.name.split()[0]][dtype] * 1e12


def _check_division(batch: int, nodes: int, gpus_per_node: int) -> None:
    gpus = nodes * gpus_per_node
    if batch % gpus:
        larger = max(gpus, round(batch / gpus) * gpus)
        fewer = [n for n in range(nodes, 0, -1) if batch % (n * gpus_per_node) == 0]
        raise UserError(
            f"training.global_batch: {batch} samples do not divide over {gpus} GPUs; --global-batch {larger} fits"
            + (f", or --nodes {fewer[0]}" if fewer else "")
        )


def _micro_batches(workload: Workload, share: int, gpus: int) -> Iterator[int]:
    """Yield the micro-batches that a GPU's ``share`` of the global batch can be cut into, the largest first."""
    sizes = [n for n in range(share, 0, -1) if share % n == 0 and n * gpus % workload.compared == 0]
    if not sizes:
        raise UserError(
            f"contrastive_batch: groups of {workload.compared} clips cannot be made of what {gpus} GPUs take at once, "
            f"at most {share * gpus}; contrastive_batch={share * gpus} fits"
        )
    yield from sizes


def _fitting(
    workload: Workload, training: TrainingConfig, fleet: Fleet, mode: Recomputation, sizes: list[int]
) -> Iterator[Plan]:
    """Yield for each ZeRO stage the plan with the largest micro-batch of ``sizes`` that there is room for."""

    @functools.cache
    def living(size: int) -> int:  # counted for each: the worst instant of a small batch need not be a large one's
        step = workload.step(workload.modes[mode], _taking(training, size))
        held(step, training, 1)  # gives it its precision
        return activations(step)

    single = workload.step(workload.modes[mode], _taking(training, 1))
    held(single, training, 1)
    flops = arithmetic(single)
    for stage in STAGES:
        settings = replace(training, zero_stage=stage)
        states = held(single, settings, fleet.gpus)
        fits = functools.partial(_fits, fleet, states, living)
        for size in sizes[bisect.bisect_left(sizes, True, key=fits) :][:1]:
            memory = memory_parts(Prediction(states, living(size)))
            yield _plan(workload, single, settings, fleet, mode, size, memory, flops)


def _fits(fleet: Fleet, states: States, living: Callable[[int], int], size: int) -> bool:
    return sum(memory_parts(Prediction(states, living(size))).values()) <= fleet.cluster.gibibytes * GIB


def memory_parts(prediction: Prediction) -> dict[str, float]:
    """Return the bytes that a GPU needs at the worst instant, by what they are for."""
    states = prediction.states
    parts: dict[str, float] = {
        "weights": states.parameters,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
    }
    if states.communication + prediction.activations >= states.update:
        parts |= {"buckets": states.communication, "activations": prediction.activations}
    else:
        parts["optimizer's step"] = states.update
    return {**parts, "allocator": WASTE * prediction.total, "CUDA and NCCL": OWN}


def _plan(
    workload: Workload,
    step: MicroStep,
    training: TrainingConfig,
    fleet: Fleet,
    mode: Recomputation,
    size: int,
    memory: dict[str, float],
    flops: dict[torch.dtype, int],
) -> Plan:
    share = training.global_batch // fleet.gpus
    cluster, accumulation = fleet.cluster, share // size
    precision = DTYPES[training.precision]
    peak = fleet.peak(precision)
    computing = share * sum(
        count / fleet.peak(dtype) / (workload.efficiency(cluster) if dtype == precision else cluster.float32)
        for dtype, count in flops.items()
    )
    sent = traffic(step, training, fleet.gpus, accumulation)
    states = held(step, training, fleet.gpus)
    times = {
        "computing": computing,
        "sending": sent / (fleet.slowest_link * 1e9),
        "updating": (2 * states.optimizer + states.update + states.gradients) / (cluster.memory * 1e9),
    }
    return Plan(
        zero_stage=training.zero_stage,
        recomputation=mode,
        micro_batch=size,
        accumulation=accumulation,
        settings=f"training.precision={training.precision} training.zero_stage={training.zero_stage} "
        f"training.micro_batch={size}{workload.setting(mode)}",
        memory=memory,
        traffic=sent,
        **times,
        mfu=workload.useful * share / (sum(times.values()) * peak),
    )


def traffic(step: MicroStep, training: TrainingConfig, gpus: int, accumulation: int) -> float:
    """Return the bytes that each of ``gpus`` sends in a step of ``accumulation`` micro-batches, as DeepSpeed does it.

    With all weights that an engine trains, Ψ bytes, and (gpus − 1) / gpus of: ZeRO-1: 2Ψ for the gradients, which it
    all-reduces though each GPU needs but a part, and Ψ for the new weights. ZeRO-2: the same, but the gradients of each
    micro-batch. ZeRO-3, in each micro-batch: Ψ for the weights, again in the backward pass for those that it has let go
    of, which are last used more than REUSE parameters ago; and Ψ for the gradients.
    """
    numbers = 0
    for module, settings in engines(step, training):
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        again = max(0, count - REUSE // 2)  # forth and back
        numbers += {
            1: 3 * count,
            2: (2 * accumulation + 1) * count,
            3: accumulation * (2 * count + again),
        }[settings.zero_stage]
    return numbers * DTYPES[training.precision].itemsize * (gpus - 1) / gpus


def _taking(training: TrainingConfig, micro_batch: int) -> TrainingConfig:
    return replace(training, global_batch=micro_batch, micro_batch=micro_batch)
