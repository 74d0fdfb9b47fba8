"""``mmldm plan``: the plans for a model on so many nodes, and what the best of them comes to, as text."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import arguments, load, presets
from mmldm_scale.planning.hardware import CLUSTERS
from mmldm_scale.planning.memory_table import GIB
from mmldm_scale.planning.planner import OWN, WASTE, Fleet, Plan, find_plans
from mmldm_scale.planning.workload import Workload, of_autoencoder, of_dit
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining

SHOWN = 8  # plans in the table
DAY = 86_400
MUCH = 1 / 3  # of a step is much to spend on sending
FEW = 4  # samples at once are too few for the share of the peak that is assumed


def run(args: argparse.Namespace) -> int:
    """Print the plans that the arguments of ``mmldm plan`` ask for; return the exit status.

    Raises:
        UserError: the configuration does not fit, or nothing fits into the GPUs.
    """
    if min(args.nodes, args.gpus_per_node) < 1:
        raise UserError(f"--nodes {args.nodes} --gpus-per-node {args.gpus_per_node}: 1 or more of each fits")
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: 1 or more fits")
    if args.network is not None and not 0 < args.network < math.inf:
        raise UserError(f"--network {args.network:g}: GB/s from node to node, above 0, fits")
    workload = _workload(args)
    cluster = CLUSTERS[args.gpu]
    if args.network is not None:
        cluster = replace(cluster, network=args.network)
    fleet = Fleet(cluster, args.nodes, args.gpus_per_node)
    plans = find_plans(workload, cluster, args.nodes, args.gpus_per_node)
    if not plans:
        more = "; a smaller contrastive_batch might do" if workload.compared > 1 else "; more nodes might do"
        raise UserError(f"--gpu {args.gpu}: {workload.name} does not fit into {cluster.name}{more}")
    print(report(workload, fleet, plans, args.samples or workload.training.total_samples))
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    if args.model == "autoencoder":
        if not (args.preset or args.config):
            raise UserError("--model autoencoder: give its configuration too, as --preset landscape")
        config = load(
            AutoencoderTraining, arguments.files(args, "autoencoder"), ["shards=DIR", "kl_vae=DIR", *args.overrides]
        )
        return of_autoencoder("autoencoder", _of_batches(config, args.global_batch))
    files = [presets.path(args.model, "dit"), *arguments.files(args, "dit")]
    config = load(DiTTraining, files, ["shards=DIR", *args.overrides])
    return of_dit(f"DiT-{args.model}", _of_batches(config, args.global_batch))


def _of_batches(config: DiTTraining | AutoencoderTraining, size: int | None) -> DiTTraining | AutoencoderTraining:
    """Return ``config`` with another global batch, if ``size`` is one, and lengths and intervals that fit to it."""
    if size is None:
        return config
    if size < 1:
        raise UserError(f"--global-batch {size}: 1 or more fits")
    total = math.ceil(config.training.total_samples / size) * size
    fitting = dict.fromkeys(("global_batch", "log_every", "checkpoint_every", "preview_every"), size)
    fitting |= {"micro_batch": 1, "total_samples": total, "ema_snapshot_every": 0, "keep_every": 0}
    return replace(config, training=replace(config.training, **fitting))


def report(workload: Workload, fleet: Fleet, plans: Sequence[Plan], samples: int) -> str:
    """Return the table of ``plans``, and what ``samples`` take with the first of them."""
    cluster, best, batch = fleet.cluster, plans[0], workload.training.global_batch
    seconds = best.seconds * samples / batch
    length = f"{seconds / DAY:.1f} days" if seconds >= DAY else f"{seconds / 3600:.1f} hours"
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in best.memory.items())
    rows = [
        f"{workload.name} on {fleet.nodes} × {fleet.gpus_per_node} {cluster.name}, {cluster.precision}, "
        f"{batch:,} samples a step",
        *_table(plans, batch),
        f"memory, GiB: {parts}",
        f"step, s: computing {best.computing:.3g}, sending {best.traffic / 1e9:.3g} GB {best.sending:.3g}, "
        f"optimizer {best.updating:.2g}",
        f"{samples:,} samples: {length}, {fleet.gpus * seconds / 3600:,.0f} GPU-hours",
        f"settings: {best.settings}",
        *_warnings(fleet, best),
        f"assumed, not measured: {workload.efficiency(cluster):.0%} of the dense peak while computing; "
        f"{cluster.link:g} GB/s from GPU to GPU, {cluster.network:g} GB/s from node to node, after and not while "
        f"computing; {OWN / GIB:g} GiB and {WASTE:.0%} of memory on top; no waiting for data",
    ]
    return "\n".join(rows)


def _table(plans: Sequence[Plan], batch: int) -> Iterator[str]:
    yield (
        f"{'':<3}{'ZeRO':<6}{'recomputes':<12}{'micro-batch':<14}{'GiB of a GPU':>13}{'sent, GB':>10}{'step, s':>9}"
        f"{'samples/s':>11}{'MFU':>6}"
    )
    for plan in plans[:SHOWN]:
        size = f"{plan.micro_batch} × {plan.accumulation}"
        yield (
            f"{'→' if plan is plans[0] else '':<3}{plan.zero_stage:<6}{plan.recomputation:<12}{size:<14}"
            f"{plan.total / GIB:>13.1f}{plan.traffic / 1e9:>10.1f}{plan.seconds:>9.2f}"
            f"{batch / plan.seconds:>11,.0f}{plan.mfu:>6.0%}"
        )


def _warnings(fleet: Fleet, plan: Plan) -> Iterator[str]:
    share = plan.sending / plan.seconds
    if share > MUCH:
        which = "between nodes" if fleet.nodes > 1 and fleet.cluster.network <= fleet.cluster.link else "between GPUs"
        yield (
            f"warning: {share:.0%} of the time goes into sending {which}; fewer GPUs, a larger --global-batch or a "
            "faster network would use them better"
        )
    if plan.micro_batch < FEW:
        yield (
            f"warning: with {plan.micro_batch} at once a GPU is likely to be slower than assumed; fewer GPUs or a "
            "larger --global-batch would fill it"
        )
