"""``mmldm plan``: the plans for a model on a number of nodes, and what the best of them costs, as text."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import arguments, presets
from mmldm_scale.planning.hardware import CLUSTERS
from mmldm_scale.planning.memory import GIB
from mmldm_scale.planning.planner import FRAGMENTATION, RUNTIME_BYTES, Fleet, Plan, find_plans
from mmldm_scale.planning.sizes import load_run, read_sizes
from mmldm_scale.planning.workload import Workload, load_config, make_workload
from mmldm_scale.trainables import registry
from mmldm_scale.trainables.registry import Registration, registered

MAX_ROWS = 8  # plans in the table
SECONDS_PER_DAY = 86_400
SENDING_WARNING = 1 / 3  # share of a step's time that goes into sending, above which the report warns
SMALLEST_MICRO_BATCH = 4  # samples; with fewer the report warns that the assumed share of the peak is not reached


def run(args: argparse.Namespace) -> int:
    """Print the plans that the arguments of ``mmldm plan`` ask for; return the exit status.

    Raises:
        UserError: the configuration cannot work, or nothing fits into the GPUs.
    """
    if min(args.nodes, args.gpus_per_node) < 1:
        raise UserError(f"--nodes {args.nodes} --gpus-per-node {args.gpus_per_node}: both must be at least 1")
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: must be at least 1")
    if args.network is not None and not 0 < args.network < math.inf:
        raise UserError(f"--network {args.network:g}: GB/s between two nodes must be above 0")
    workload, sizes = _workload(args)
    cluster = CLUSTERS[args.gpu]
    if args.network is not None:
        cluster = replace(cluster, network=args.network)
    fleet = Fleet(cluster, args.nodes, args.gpus_per_node)
    plans = find_plans(workload, fleet)
    if not plans:
        remedy = "a smaller contrastive_batch" if workload.samples_together > 1 else "more nodes"
        raise UserError(f"--gpu {args.gpu}: {workload.label} does not fit into {cluster.name}; {remedy} may help")
    print(report(workload, fleet, plans, args.samples or workload.training.total_samples))
    print(f"sizes: {sizes}")
    return 0


def _workload(args: argparse.Namespace) -> tuple[Workload, str]:
    """Return the training of ``--run`` or ``--model``, and the sizes of its samples for the user."""
    record, config, label = _training(args)
    sizes = read_sizes(record, config)
    config = _with_global_batch(config, args.global_batch)
    return make_workload(record.name, config, label, sizes.manifest), sizes.description


def _training(args: argparse.Namespace) -> tuple[Registration, Any, str]:
    """Return what ``--run`` trains, its configuration and label; or those of ``--model``.

    The latter names a trainable, whose configuration is given, or else a DiT's preset.
    """
    if (args.model is None) == (args.run_folder is None):
        raise UserError("give either --model NAME or --run DIR")
    if args.run_folder is not None:
        if args.configuration:
            raise UserError(f"--run {args.run_folder}: has its own configuration; give no other beside it")
        record, config = load_run(args.run_folder, args.overrides)
        return record, config, f"{args.run_folder} ({record.name})"
    files: list[Path] = []
    if args.model in registry.names():
        trainable, label = args.model, args.model
        if not args.configuration:
            raise UserError(f"--model {trainable}: needs a configuration, as --preset NAME or --config FILE")
    else:
        trainable, label = "dit", f"DiT-{args.model}"
        files.append(presets.path(args.model, "dit"))
    config = load_config(trainable, [*files, *arguments.files(args, trainable)], args.overrides)
    return registered(trainable), config, label


def _with_global_batch(config: Any, size: int | None) -> Any:
    """Return ``config`` with a global batch of ``size`` samples, and with lengths and intervals that are multiples."""
    if size is None:
        return config
    if size < 1:
        raise UserError(f"--global-batch {size}: must be at least 1")
    total = math.ceil(config.training.total_samples / size) * size
    changes = dict.fromkeys(("global_batch", "log_every", "checkpoint_every", "preview_every"), size)
    changes |= {"micro_batch": 1, "total_samples": total, "ema_snapshot_every": 0, "keep_every": 0}
    return replace(config, training=replace(config.training, **changes))


def report(workload: Workload, fleet: Fleet, plans: Sequence[Plan], samples: int) -> str:
    """Return the table of ``plans``, and what training on ``samples`` costs with the first of them."""
    cluster, best, batch = fleet.cluster, plans[0], workload.training.global_batch
    seconds = best.seconds * samples / batch
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in best.memory.items())
    rows = [
        f"{workload.label} on {fleet.nodes} × {fleet.gpus_per_node} {cluster.name}, {cluster.precision}, "
        f"{batch:,} samples a step",
        *_table(plans, batch),
        f"memory, GiB: {parts}",
        f"step, s: computing {best.computing:.3g}, sending {best.traffic / 1e9:.3g} GB {best.sending:.3g}, "
        f"optimizer {best.updating:.2g}",
        f"{samples:,} samples: {_duration(seconds)}, {_hours(fleet.gpus * seconds / 3600)} GPU-hours",
        f"settings: {best.settings}",
        *_warnings(fleet, best),
        f"assumed, not measured: {workload.efficiency(cluster):.0%} of the dense peak while computing; "
        f"{cluster.link:g} GB/s between GPUs of a node, {cluster.network:g} GB/s between nodes, none of it while "
        f"computing; {RUNTIME_BYTES / GIB:g} GiB and {FRAGMENTATION:.0%} of memory in addition; no waiting for data",
    ]
    return "\n".join(rows)


def _duration(seconds: float) -> str:
    """Return ``seconds`` in days, hours or minutes, whichever is the largest that gives at least 1."""
    sizes = ((SECONDS_PER_DAY, "days"), (3600, "hours"), (60, "minutes"))
    size, name = next((part for part in sizes if seconds >= part[0]), sizes[-1])
    return f"{seconds / size:.1f} {name}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1 else f"{hours:.2g}"


def _table(plans: Sequence[Plan], batch: int) -> Iterator[str]:
    yield (
        f"{'':<3}{'ZeRO':<6}{'recomputes':<12}{'micro-batch':<14}{'GiB of a GPU':>13}{'sent, GB':>10}{'step, s':>9}"
        f"{'samples/s':>11}{'MFU':>6}"
    )
    for plan in plans[:MAX_ROWS]:
        size = f"{plan.micro_batch} × {plan.accumulation}"
        yield (
            f"{'→' if plan is plans[0] else '':<3}{plan.zero_stage:<6}{plan.recomputation:<12}{size:<14}"
            f"{plan.total / GIB:>13.1f}{plan.traffic / 1e9:>10.1f}{plan.seconds:>9.2f}"
            f"{batch / plan.seconds:>11,.0f}{plan.mfu:>6.0%}"
        )


def _warnings(fleet: Fleet, plan: Plan) -> Iterator[str]:
    share = plan.sending / plan.seconds
    if share > SENDING_WARNING:
        where = "between nodes" if fleet.nodes > 1 and fleet.cluster.network <= fleet.cluster.link else "between GPUs"
        yield (
            f"warning: {share:.0%} of the time goes into sending {where}; use fewer GPUs, a larger --global-batch or a "
            "faster network"
        )
    if plan.micro_batch < SMALLEST_MICRO_BATCH:
        yield (
            f"warning: with a micro-batch of {plan.micro_batch} a GPU is likely to be slower than assumed; use fewer "
            "GPUs or a larger --global-batch"
        )
