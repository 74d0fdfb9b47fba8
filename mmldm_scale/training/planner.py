"""What training a DiT takes of GPUs that one may not have yet: memory, traffic between them, time.

    plans = find_plans(config, CLUSTERS["a800"], gpus=16)  # those that fit, the best first

Tried are the settings that do not change what is learned: ZeRO stage, activation checkpointing and micro-batch. Memory
is that of :mod:`~mmldm_scale.training.memory`, arithmetic is counted by running the model on shapes, traffic is what
DeepSpeed sends by stage. Time is an estimate from these and from what :class:`Cluster` assumes: the share of their peak
at which the GPUs compute, and the speed of the links. Computing and sending are taken to follow one another, as they do
in DeepSpeed's ZeRO-1 and 2 by default; ZeRO-3 may hide a part of what it sends.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.config import DiTTraining, TrainingConfig, load
from mmldm_scale.errors import UserError
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs, parameters
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.models.recompute import Recomputation
from mmldm_scale.training.memory import MicroStep, Prediction, activations, cast, dit_step, states
from mmldm_scale.training.memory_table import CONFIGS, GIB
from mmldm_scale.training.speed import PEAK_TFLOPS, TRAINING

OWN = 2 * GIB  # what CUDA, NCCL and cuDNN take of a GPU for themselves
WASTE = 1.06  # PyTorch's allocator takes so many times what is asked of it
MODES: tuple[Recomputation, ...] = ("none", "selective", "full")
STAGES = (1, 2, 3)
REUSE = 1_000_000_000  # DeepSpeed's default of stage3_max_reuse_distance
CLOSE = 1.1  # the estimate of a step's time is no better than that
SHOWN = 8  # plans in the table
DAY = 86_400


@dataclass(frozen=True)
class Cluster:
    """A kind of GPU, and how its nodes are joined.

    Attributes:
        name: as the vendor calls it; begins with its key in PEAK_TFLOPS.
        gibibytes: of memory.
        precision: the one to train in.
        link: GB/s that a GPU sends to another of its node (NVLink, one direction).
        network: GB/s that a node sends to another, all its adapters together.
        efficiency: share of the dense peak at which the DiT of a width computes; assumed, in between interpolated.
    """

    name: str
    gibibytes: float
    precision: str
    link: float
    network: float
    efficiency: dict[int, float]

    @property
    def peak(self) -> float:
        """Dense peak of one GPU in FLOP/s, in its precision."""
        return PEAK_TFLOPS[self.name.split()[0]][DTYPES[self.precision]] * 1e12

    def efficiency_at(self, width: int) -> float:
        """Return the share of the peak at which a DiT of ``width`` computes."""
        return float(np.interp(width, *zip(*self.efficiency.items(), strict=True)))


AMPERE, HOPPER, VOLTA = (
    dict(zip((768, 1024, 1536), shares, strict=True))
    for shares in ((0.38, 0.46, 0.53), (0.28, 0.35, 0.41), (0.22, 0.27, 0.32))
)
CLUSTERS = {
    "v100": Cluster("V100 32 GB", 31.7, "fp16", link=150, network=25, efficiency=VOLTA),
    "v100-16": Cluster("V100 16 GB", 15.8, "fp16", link=150, network=25, efficiency=VOLTA),
    "a100": Cluster("A100 80 GB", 79.2, "bf16", link=300, network=100, efficiency=AMPERE),
    "a800": Cluster("A800 80 GB", 79.2, "bf16", link=200, network=100, efficiency=AMPERE),
    "h100": Cluster("H100 80 GB", 79.2, "bf16", link=450, network=400, efficiency=HOPPER),
    "h800": Cluster("H800 80 GB", 79.2, "bf16", link=200, network=400, efficiency=HOPPER),
    "h200": Cluster("H200 141 GB", 139.8, "bf16", link=450, network=400, efficiency=HOPPER),
}


@dataclass(frozen=True)
class Plan:
    """One way to train.

    Attributes:
        memory: bytes on each GPU at most, what the system takes included.
        traffic: bytes that each GPU sends in a step.
        seconds: of a step, expected.
        mfu: share of the peak that goes into the model, recomputation not counted.
    """

    zero_stage: int
    recomputation: Recomputation
    micro_batch: int
    accumulation: int
    memory: float
    traffic: float
    seconds: float
    mfu: float

    def overrides(self) -> str:
        """Return the settings, as ``mmldm train dit`` takes them."""
        checkpointing = f" model.activation_checkpointing={self.recomputation}" if self.recomputation != "none" else ""
        return f"training.zero_stage={self.zero_stage} training.micro_batch={self.micro_batch}{checkpointing}"


def find_plans(config: DiTTraining, cluster: Cluster, gpus: int, gpus_per_node: int = 8) -> list[Plan]:
    """Return the plans for ``config`` that fit into memory, the quickest first.

    Those that are expected to be within CLOSE of the quickest count as equals: of these the simplest comes first.

    Raises:
        UserError: the batch does not divide over the GPUs.
    """
    config = replace(config, training=replace(config.training, precision=cluster.precision))
    batch = config.training.global_batch
    if batch % gpus:
        fit = max(gpus, round(batch / gpus) * gpus)
        raise UserError(f"training.global_batch: {batch} samples do not divide over {gpus} GPUs; {fit} fits")
    link = cluster.link if gpus <= gpus_per_node else min(cluster.link, cluster.network)
    plans = [
        _timed(config, cluster, gpus, link, fitting)
        for mode in MODES
        for fitting in _fitting(_with(config, mode), cluster, gpus)
    ]
    close = CLOSE * min((plan.seconds for plan in plans), default=0.0)

    def order(plan: Plan) -> tuple:
        simplicity = MODES.index(plan.recomputation), plan.zero_stage
        return (0, *simplicity) if plan.seconds <= close else (1, plan.seconds, *simplicity)

    return sorted(plans, key=order)


@dataclass(frozen=True)
class Fitting:
    """A ZeRO stage and the largest micro-batch that it has room for, with the memory and arithmetic of that."""

    zero_stage: int
    recomputation: Recomputation
    micro_batch: int
    memory: float
    flops_per_sample: int


def _fitting(config: DiTTraining, cluster: Cluster, gpus: int) -> list[Fitting]:
    training, mode = config.training, config.model.activation_checkpointing
    share = training.global_batch // gpus
    single, double = (dit_step(_taking(config, n), AUDIO_SHAPE, VIDEO_SHAPE) for n in (1, 2))
    cast(single.module, training), cast(double.module, training)
    first = activations(single)
    further = activations(double) - first  # each sample more takes as much
    flops = arithmetic(single)
    found = []
    for stage in STAGES:
        held = states(single.module, replace(training, zero_stage=stage), gpus)
        for micro_batch in (n for n in range(share, 0, -1) if share % n == 0):
            memory = WASTE * Prediction(held, first + (micro_batch - 1) * further).total + OWN
            if memory <= cluster.gibibytes * GIB:
                found.append(Fitting(stage, mode, micro_batch, memory, flops))
                break
    return found


def _timed(config: DiTTraining, cluster: Cluster, gpus: int, link: float, fitting: Fitting) -> Plan:
    share = config.training.global_batch // gpus
    accumulation = share // fitting.micro_batch
    computing = fitting.flops_per_sample * share / (cluster.peak * cluster.efficiency_at(config.model.width))
    sent = traffic(config, fitting.zero_stage, gpus, accumulation)
    seconds = computing + sent / (link * 1e9)
    useful = TRAINING * dit_macs(config.model, AUDIO_SHAPE, VIDEO_SHAPE).flops * share
    return Plan(
        fitting.zero_stage,
        fitting.recomputation,
        fitting.micro_batch,
        accumulation,
        fitting.memory,
        sent,
        seconds,
        mfu=useful / (seconds * cluster.peak),
    )


def arithmetic(step: MicroStep) -> int:
    """Return the floating-point operations of a micro-step, what is computed again included; on shapes alone."""
    with FlopCounterMode(display=False) as counter:
        step.module(step.batch)["loss"].mean().backward()
    return counter.get_total_flops()


def traffic(config: DiTTraining, stage: int, gpus: int, accumulation: int) -> float:
    """Return the bytes that each of ``gpus`` sends in a step of ``accumulation`` micro-batches, as DeepSpeed does it.

    With all weights, Ψ bytes, and (gpus − 1) / gpus of: ZeRO-1: 2Ψ for the gradients, which it all-reduces though each
    GPU needs but a part, and Ψ for the new weights. ZeRO-2: the same, but the gradients of each micro-batch. ZeRO-3, in
    each micro-batch: Ψ for the weights, again in the backward pass for those that it has let go of, which are last used
    more than REUSE parameters ago; and Ψ for the gradients.
    """
    with torch.device("meta"):
        count = parameters(DiT(config.model, AUDIO_SHAPE, VIDEO_SHAPE))
    again = max(0, count - REUSE // 2)  # forth and back
    numbers = {
        1: 3 * count,
        2: (2 * accumulation + 1) * count,
        3: accumulation * (2 * count + again),
    }[stage]
    return numbers * DTYPES[config.training.precision].itemsize * (gpus - 1) / gpus


def run(args: argparse.Namespace) -> int:
    """Print the plans that the arguments of ``mmldm plan`` ask for; return the exit status.

    Raises:
        UserError: the configuration does not fit, or nothing fits into the GPUs.
    """
    config = load(DiTTraining, [CONFIGS / f"dit/{args.model}.yaml", *args.config], ["shards=DIR", *args.overrides])
    if args.global_batch:
        config = replace(config, training=_of_batches(config.training, args.global_batch))
    if min(args.nodes, args.gpus_per_node) < 1:
        raise UserError(f"--nodes {args.nodes} --gpus-per-node {args.gpus_per_node}: 1 or more of each fits")
    cluster = CLUSTERS[args.gpu]
    if args.network is not None:
        cluster = replace(cluster, network=args.network)
    gpus = args.nodes * args.gpus_per_node
    plans = find_plans(config, cluster, gpus, args.gpus_per_node)
    if not plans:
        raise UserError(f"--gpu {args.gpu}: DiT-{args.model} does not fit into {cluster.name}; more nodes might do")
    print(report(args.model, config, cluster, (args.nodes, args.gpus_per_node), plans))
    return 0


def report(
    model: str, config: DiTTraining, cluster: Cluster, nodes_and_gpus: tuple[int, int], plans: Sequence[Plan]
) -> str:
    """Return the table of ``plans`` on so many nodes of so many GPUs, and what the first of them comes to."""
    nodes, gpus = nodes_and_gpus
    training, best = config.training, plans[0]
    rows = [
        f"DiT-{model} on {nodes} × {gpus} {cluster.name}, {cluster.precision}, {training.global_batch} samples a step",
        f"{'':<3}{'ZeRO':<6}{'recomputes':<12}{'micro-batch':<14}{'GiB of a GPU':>13}{'sent, GB':>10}{'step, s':>9}"
        f"{'samples/s':>11}{'MFU':>6}",
    ]
    for plan in plans[:SHOWN]:
        batch = f"{plan.micro_batch} × {plan.accumulation}"
        rows.append(
            f"{'→' if plan is best else '':<3}{plan.zero_stage:<6}{plan.recomputation:<12}{batch:<14}"
            f"{plan.memory / GIB:>13.1f}{plan.traffic / 1e9:>10.1f}{plan.seconds:>9.2f}"
            f"{training.global_batch / plan.seconds:>11.0f}{plan.mfu:>6.0%}"
        )
    seconds = best.seconds * training.total_samples / training.global_batch
    efficiency = cluster.efficiency_at(config.model.width)
    rows += [
        f"{training.total_samples:,} samples: {seconds / DAY:.1f} days, {nodes * gpus * seconds / 3600:,.0f} GPU-hours",
        f"settings: training.precision={cluster.precision} {best.overrides()}",
        f"assumed, not measured: {efficiency:.0%} of the dense peak while computing; {cluster.link:g} GB/s from GPU to "
        f"GPU, {cluster.network:g} GB/s from node to node; {OWN / GIB:g} GiB and {WASTE - 1:.0%} of memory on top",
    ]
    return "\n".join(rows)


def _of_batches(training: TrainingConfig, size: int) -> TrainingConfig:
    """Return ``training`` with another global batch, and lengths and intervals that fit to it."""
    total = math.ceil(training.total_samples / size) * size
    intervals = dict.fromkeys(("log_every", "checkpoint_every", "preview_every"), size)
    return replace(training, global_batch=size, micro_batch=1, total_samples=total, ema_snapshot_every=0, **intervals)


def _with(config: DiTTraining, mode: Recomputation) -> DiTTraining:
    return replace(config, model=replace(config.model, activation_checkpointing=mode))


def _taking(config: DiTTraining, micro_batch: int) -> DiTTraining:
    return replace(config, training=replace(config.training, global_batch=micro_batch, micro_batch=micro_batch))
