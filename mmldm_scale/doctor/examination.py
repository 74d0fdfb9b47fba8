"""``mmldm doctor``: chooses the checks, runs them on every rank, and prints the findings of all ranks.

Every rank checks its GPU, the first rank of each node the machine and the shards, all ranks together their agreement.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmldm_scale import config
from mmldm_scale.cluster import slurm
from mmldm_scale.config import Backend, Precision, TrainingConfig, arguments
from mmldm_scale.doctor import devices, host, ports, ranks, shards, signals, software, storage
from mmldm_scale.doctor.findings import Check, Finding, report, run_check, worst_level
from mmldm_scale.doctor.ranks import Ranks
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.trainables.registry import registered
from mmldm_scale.training.trainable import StepOutline

JOIN_TIMEOUT = 60.0  # seconds in which all ranks have to join


@dataclass(frozen=True)
class Request:
    """What to check.

    Attributes:
        run: the run folder.
        shards: folders and URLs of shard sets.
        quick: only what takes seconds, as the first step of a job.
        workers: loader workers of each process.
        keep_checkpoints: number of checkpoints that are kept.
        checkpoint_bytes: returns the size of a checkpoint, in bytes; may take seconds.
        micro_batch_bytes: returns the size of a micro-batch, in bytes; may take seconds.
        precision: of the training; empty: the best one of the GPU.
        attention: the attention backend that the configuration asks for.
    """

    run: Path = Path("runs")
    shards: list[str] = field(default_factory=list)
    quick: bool = False
    workers: int = 0
    keep_checkpoints: int = 0
    checkpoint_bytes: Callable[[], int] = lambda: 0
    micro_batch_bytes: Callable[[], int] = lambda: 0
    precision: Precision | Literal[""] = ""
    attention: Backend = "auto"


def run(args: argparse.Namespace) -> int:
    """Check what the arguments of ``mmldm doctor`` name; return 0, or 1 if a finding is an error.

    Raises:
        UserError: the configuration is not valid.
    """
    request = read_request(args)
    with signals.listening():
        return _examine(request)


def _examine(request: Request) -> int:
    """Run the checks with all ranks, and print the findings; return 0, or 1 if one is an error."""
    (join_finding, *_), here = _join()
    if here is None:
        print(join_finding.line(), file=sys.stderr, flush=True)
        return 1
    findings = [finding for check in checks(request, here) for finding in run_check(check)]
    try:
        by_rank, hosts = here.gather(findings), here.gather(slurm.node_name())
        if here.rank == 0:
            print("\n".join(report(by_rank, hosts)), flush=True)
        here.gather(None)
    except RuntimeError as error:  # a rank died or hangs: each of the others prints its own findings
        lost = Finding("error", "ranks", f"a rank was lost during the checks: {' '.join(str(error).split())[:200]}")
        print("\n".join(finding.line(slurm.node_name()) for finding in [*findings, lost]), flush=True)
        return 1
    finally:
        ranks.leave(here)
    if here.rank or worst_level(by_rank) != "error":
        return 0
    if slurm.in_step():  # srun ends the step when a task exits, and may lose its last lines
        time.sleep(1)
    return 1


def read_request(args: argparse.Namespace) -> Request:
    """Return what to check: the arguments are those of the training, or name only folders."""
    if not (args.configuration or args.overrides):
        return Request(Path(args.folder or "runs"), args.shards, args.quick)
    overrides = [*args.overrides]
    if args.shards:
        overrides.append(f"shards=[{','.join(args.shards)}]")
    if args.folder:
        overrides.append(f"run={args.folder}")
    record = registered(args.trainable)
    schema = config.load(record.schema(), arguments.files(args, record.name), overrides)
    training, run = schema.training, Path(schema.run)
    outline = functools.cache(lambda: record.outline(schema))
    return Request(
        run,
        list(schema.shards),
        args.quick,
        training.workers,
        training.keep_checkpoints,
        lambda: storage.newest_checkpoint(run) or _checkpoint_bytes(outline(), training),
        lambda: sum(tensor.nbytes for tensor in outline().batch.values()),
        training.precision,
        getattr(getattr(schema, "model", None), "attention", "auto"),
    )


def _checkpoint_bytes(outline: StepOutline, training: TrainingConfig) -> int:
    """Return the approximate size of a checkpoint of the trainable that ``outline`` is of, in bytes."""
    from mmldm_scale.planning import workload

    return workload.checkpoint_bytes(outline, training)


def _join() -> tuple[list[Finding], Ranks | None]:
    """Join the other ranks; return the finding, and None in place of the ranks if that fails."""
    joined: list[Ranks] = []

    def join() -> Iterator[Finding]:
        joined.append(ranks.join(JOIN_TIMEOUT))
        yield Finding("ok", "ranks", f"{joined[0].size} joined")

    findings = run_check(Check("ranks", join, JOIN_TIMEOUT + 10))
    return findings, joined[0] if joined else None


def checks(request: Request, here: Ranks) -> list[Check]:
    """Return the checks of this rank, in order; collective checks come last and are the same on all ranks."""
    device, processes = devices.device(here.local_rank), slurm.processes_on_node() or here.size
    dtype = DTYPES[request.precision] if request.precision else devices.default_precision(device)
    chosen = [
        Check("GPU", lambda: devices.gpu(here.local_rank)),
        Check("attention", lambda: devices.attention(device, dtype, request.attention), 60.0),
    ]
    if here.local_rank == 0:
        chosen = [
            Check("versions", software.versions),
            *([] if request.quick else [Check("codecs", software.codecs)]),
            Check("driver", devices.node),
            *chosen,
            Check("processors", lambda: host.processors(processes, request.workers)),
            Check("memory", lambda: host.memory(processes, request.workers)),
            Check("open files", host.open_files),
            Check(
                "shared memory",
                lambda: host.shared_memory(processes, request.workers, request.micro_batch_bytes()),
                60.0,
            ),
            Check("temporary", host.temporary_files),
            Check("SLURM", host.slurm_job),
            Check(
                "disk", lambda: storage.disk(request.run, request.checkpoint_bytes(), request.keep_checkpoints), 60.0
            ),
            Check("run folder", lambda: storage.clock_and_permission(request.run)),
            *(_shard_check(location, here.rank, 2.0 if request.quick else 10.0) for location in request.shards),
        ]
    if here.size == 1:
        single = Finding("ok", "ranks", "one process; srun or --processes 2 also checks the communication of ranks")
        return [
            *chosen,
            Check("signals", lambda: signals.delivery(here)),
            Check("ranks", lambda: [single]),
            Check("ports", ports.open_ports),
        ]
    return [
        *chosen,
        Check("signals", lambda: signals.delivery(here), 60.0),
        Check("GPU", lambda: ranks.separate_gpus(here), 60.0),
        Check("agreement", lambda: ranks.agreement(here), 120.0),
        Check("clocks", lambda: ranks.clocks(here), 60.0),
        Check("all-reduce", lambda: ranks.all_reduce(here, 16 if request.quick else 64), 120.0),
        Check("ports", ports.open_ports),
    ]


def _shard_check(location: str, rank: int, seconds: float) -> Check:
    return Check("shards", lambda: shards.check_set(location, rank, seconds), 30.0 + seconds)
