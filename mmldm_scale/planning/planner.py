"""Plans for a training on a cluster: memory, traffic between GPUs, and time of each.

    plans = find_plans(make_workload("dit", config, "DiT-L"), Fleet(CLUSTERS["a800"], nodes=16))  # the best first

A plan varies the settings that do not change what is learned: ZeRO stage, activation checkpointing and micro-batch.
Memory is that of :mod:`~mmldm_scale.planning.memory`; FLOPs are counted on the device "meta"; traffic is what DeepSpeed
sends at each stage. Time is estimated from these and from what :class:`Cluster` assumes: the share of their peak at
which the GPUs compute, and the bandwidth of the links. Computing and sending are assumed to follow one another, as
with DeepSpeed's defaults for ZeRO-1 and 2; ZeRO-3 may overlap a part of them.
"""

import bisect
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.models.recompute import Recomputation
from mmldm_scale.planning.hardware import Cluster
from mmldm_scale.planning.memory import GIB, Prediction, States, activations, all_states, trained_networks
from mmldm_scale.planning.workload import Workload, count_flops
from mmldm_scale.training.monitoring.throughput import PEAK_TFLOPS
from mmldm_scale.training.trainable import StepOutline

RUNTIME_BYTES = 2 * GIB  # bytes of a GPU that CUDA, NCCL and cuDNN take for themselves; assumed
FRAGMENTATION = 0.06  # bytes that PyTorch's allocator reserves in addition, a share of those that it hands out; assumed
ZERO_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)  # that are tried
MAX_REUSE_DISTANCE = 1_000_000_000  # parameters, DeepSpeed's default of stage3_max_reuse_distance
TIME_TOLERANCE = 1.1  # ratio of two steps' times up to which they count as equal; the estimate is no more accurate


@dataclass(frozen=True)
class Plan:
    """One way to train.

    Attributes:
        zero_stage: ZeRO stage.
        recomputation: what activation checkpointing recomputes.
        micro_batch: samples that a GPU takes at once.
        accumulation: micro-batches of a GPU in a step.
        settings: as overrides of ``mmldm train``.
        memory: bytes on each GPU at the peak, by purpose.
        traffic: bytes that each GPU sends in a step.
        computing: seconds of a step in forward and backward passes.
        sending: seconds of a step in which gradients and weights are sent between GPUs.
        updating: seconds of a step in the optimizer, which is limited by the bandwidth of the GPU's own memory.
        mfu: share of the peak that goes into the model, without recomputation.
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


@dataclass(frozen=True)
class Fleet:
    """The GPUs to train on."""

    cluster: Cluster
    nodes: int
    gpus_per_node: int = 8

    @property
    def gpus(self) -> int:
        """Number of all GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def slowest_link(self) -> float:
        """GB/s of the slowest link of a ring through all GPUs."""
        within, between = self.cluster.link, self.cluster.network
        return within if self.nodes == 1 else min(within, between)

    def peak(self, dtype: torch.dtype) -> float:
        """Dense peak of one GPU in FLOP/s."""
        return PEAK_TFLOPS[self.cluster.name.split()[0]][dtype] * 1e12


def find_plans(workload: Workload, fleet: Fleet) -> list[Plan]:
    """Return the plans for ``workload`` that fit into memory, the fastest first.

    Plans within ``TIME_TOLERANCE`` of the fastest count as equal; of these the simplest comes first.

    Raises:
        UserError: the batch does not divide over the GPUs, or not into the groups of the contrastive loss.
    """
    training = replace(workload.training, precision=fleet.cluster.precision)
    _check_division(training.global_batch, fleet)
    sizes = _micro_batches(workload, training.global_batch // fleet.gpus, fleet.gpus)
    modes = list(workload.recomputations)
    plans = [plan for mode in modes for plan in _plans_that_fit(workload, training, fleet, mode, sizes)]
    limit = TIME_TOLERANCE * min((plan.seconds for plan in plans), default=0.0)

    def order(plan: Plan) -> tuple[float, ...]:
        simplicity = modes.index(plan.recomputation), plan.zero_stage
        return (0, *simplicity) if plan.seconds <= limit else (1, plan.seconds, *simplicity)

    return sorted(plans, key=order)


def _check_division(batch: int, fleet: Fleet) -> None:
    gpus = fleet.gpus
    if batch % gpus:
        nearest = max(gpus, round(batch / gpus) * gpus)
        nodes = [n for n in range(fleet.nodes, 0, -1) if batch % (n * fleet.gpus_per_node) == 0]
        raise UserError(
            f"training.global_batch: {batch} is no multiple of the {gpus} GPUs; --global-batch {nearest} fits"
            + (f", or --nodes {nodes[0]}" if nodes else "")
        )


def _micro_batches(workload: Workload, share: int, gpus: int) -> list[int]:
    """Return the micro-batches into which a GPU's ``share`` of the global batch can be divided, the largest first."""
    group = workload.samples_together
    sizes = [n for n in range(share, 0, -1) if share % n == 0 and n * gpus % group == 0]
    if not sizes:
        raise UserError(
            f"contrastive_batch: {group} does not divide what {gpus} GPUs take at once, at most {share * gpus} clips; "
            f"contrastive_batch={share * gpus} fits"
        )
    return sizes


def _plans_that_fit(
    workload: Workload, training: TrainingConfig, fleet: Fleet, mode: Recomputation, sizes: list[int]
) -> Iterator[Plan]:
    """Yield for each ZeRO stage the plan with the largest micro-batch of ``sizes`` that fits into memory."""

    @functools.cache
    def activations_of(size: int) -> int:  # counted for each size, since they are not proportional to it
        return activations(workload.step(mode, _with_micro_batch(training, size)))

    single = workload.step(mode, _with_micro_batch(training, 1))
    flops = count_flops(single)
    for stage in ZERO_STAGES:
        settings = replace(training, zero_stage=stage)
        states = all_states(single, settings, fleet.gpus)
        fits = functools.partial(_fits, fleet, states, activations_of)
        first = 0 if fits(sizes[0]) else bisect.bisect_left(sizes, True, lo=1, key=fits)  # often all of it fits
        for size in sizes[first:][:1]:
            memory = memory_parts(Prediction(states, activations_of(size)))
            yield _plan(workload, single, replace(settings, micro_batch=size), fleet, mode, memory, flops)


def _with_micro_batch(training: TrainingConfig, size: int) -> TrainingConfig:
    return replace(training, global_batch=size, micro_batch=size)


def _fits(fleet: Fleet, states: States, activations_of: Callable[[int], int], size: int) -> bool:
    return sum(memory_parts(Prediction(states, activations_of(size))).values()) <= fleet.cluster.gibibytes * GIB


def memory_parts(prediction: Prediction) -> dict[str, float]:
    """Return the bytes that a GPU needs at the peak, by purpose."""
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
    return {**parts, "allocator": FRAGMENTATION * prediction.total, "CUDA and NCCL": RUNTIME_BYTES}


def _plan(
    workload: Workload,
    step: StepOutline,
    training: TrainingConfig,
    fleet: Fleet,
    mode: Recomputation,
    memory: dict[str, float],
    flops: dict[torch.dtype, int],
) -> Plan:
    """Return the plan of ``training``; ``step`` and ``flops`` are of a micro-batch of one sample."""
    share = training.global_batch // fleet.gpus
    cluster, accumulation, precision = fleet.cluster, share // training.micro_batch, DTYPES[training.precision]
    computing = share * sum(
        count / fleet.peak(dtype) / (workload.efficiency(cluster) if dtype == precision else cluster.float32)
        for dtype, count in flops.items()
    )
    sent = traffic(step, training, fleet.gpus, accumulation)
    sending = sent / (fleet.slowest_link * 1e9)
    states = all_states(step, training, fleet.gpus)
    updating = (2 * states.optimizer + states.update + states.gradients) / (cluster.memory * 1e9)
    settings = [f"training.{key}={getattr(training, key)}" for key in ("precision", "zero_stage", "micro_batch")]
    override = workload.override(mode)
    return Plan(
        zero_stage=training.zero_stage,
        recomputation=mode,
        micro_batch=training.micro_batch,
        accumulation=accumulation,
        settings=" ".join([*settings, override] if override else settings),
        memory=memory,
        traffic=sent,
        computing=computing,
        sending=sending,
        updating=updating,
        mfu=workload.flops_per_sample * share / ((computing + sending + updating) * fleet.peak(precision)),
    )


def traffic(outline: StepOutline, training: TrainingConfig, gpus: int, accumulation: int) -> float:
    """Return the bytes that each of ``gpus`` sends in a step of ``accumulation`` micro-batches, as DeepSpeed does it.

    Ψ is the bytes of all weights that an engine trains. Each GPU sends (gpus − 1) / gpus of

    - ZeRO-1: 2Ψ for the gradients, which are all-reduced though each GPU needs only a part, and Ψ for the new weights;
    - ZeRO-2: 2Ψ for the gradients of each micro-batch, and Ψ for the new weights;
    - ZeRO-3, for each micro-batch: Ψ for the weights; in the backward pass those weights again that were released
      because they are used more than ``MAX_REUSE_DISTANCE`` parameters apart; Ψ for the gradients.
    """
    numbers = 0
    for network, settings in trained_networks(outline, training):
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        gathered_again = max(0, count - MAX_REUSE_DISTANCE // 2)  # the distance goes forward and back
        numbers += {
            1: 3 * count,
            2: (2 * accumulation + 1) * count,
            3: accumulation * (2 * count + gathered_again),
        }[settings.zero_stage]
    return numbers * DTYPES[training.precision].itemsize * (gpus - 1) / gpus
