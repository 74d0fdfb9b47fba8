"""``mmldm doctor``: chooses the checks, has each rank make its own, and prints what all of them found.

Every rank looks at its GPU; the first of each node at the machine and the shards; all of them at one another.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmldm_scale import config
from mmldm_scale.config import Backend, ShardTraining, arguments
from mmldm_scale.doctor import devices, host, ranks, shards, software, storage
from mmldm_scale.doctor.findings import Check, Finding, examine, report, worst
from mmldm_scale.doctor.ranks import Ranks
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.trainables.registry import registered

MEETING = 60.0  # seconds


@dataclass(frozen=True)
class Request:
    """What is to be examined.

    Attributes:
        run: where the run goes.
        shards: folders and URLs of sets.
        quick: as the first step of a job, in seconds.
        workers: loader workers of each process.
        kept: checkpoints that stay.
        checkpoint: says how many bytes one has; may take seconds.
        precision: to train in; empty: what the GPU is best at.
        attention: the backend that is wanted.
    """

    run: Path = Path("runs")
    shards: list[str] = field(default_factory=list)
    quick: bool = False
    workers: int = 0
    kept: int = 0
    checkpoint: Callable[[], int] = lambda: 0
    precision: str = ""
    attention: Backend = "auto"


def run(args: argparse.Namespace) -> int:
    """Examine what the arguments of ``mmldm doctor`` name; return 0, or 1 if there is trouble.

    Raises:
        UserError: the configuration does not fit.
    """
    request = read_request(args)
    (meeting, *_), here = _meet()
    if here is None:
        print(meeting.line(), file=sys.stderr, flush=True)
        return 1
    found = [finding for check in checks(request, here) for finding in examine(check)]
    try:
        by_rank, hosts = here.gather(found), here.gather(ranks.host())
        if here.rank == 0:
            print("\n".join(report(by_rank, hosts)), flush=True)
        here.gather(None)
    except RuntimeError as error:  # a rank has died, or hangs: each tells what it knows
        lost = Finding("trouble", "ranks", f"lost while they were looked at: {' '.join(str(error).split())[:200]}")
        print("\n".join(finding.line(ranks.host()) for finding in [*found, lost]), flush=True)
        return 1
    finally:
        ranks.leave(here)
    if here.rank or worst(by_rank) != "trouble":
        return 0
    if "SLURM_STEP_ID" in os.environ:  # srun would end the others as well, and might cut off what was just said
        time.sleep(1)
    return 1


def read_request(args: argparse.Namespace) -> Request:
    """Return what the arguments ask for: they are those of the training that is to follow, or name folders alone."""
    if not (args.preset or args.config or args.overrides):
        return Request(Path(args.folder or "runs"), args.shards, args.quick)
    given = [*args.overrides]
    if args.shards:
        given.append(f"shards=[{','.join(args.shards)}]")
    if args.folder:
        given.append(f"run={args.folder}")
    record = registered(args.trainable)
    schema = config.load(record.schema(), arguments.files(args, record.name), given)
    training, run = schema.training, Path(schema.run)
    return Request(
        run,
        list(schema.shards),
        args.quick,
        training.workers,
        training.keep_checkpoints,
        lambda: storage.newest_checkpoint(run) or _checkpoint_bytes(args.model, schema),
        training.precision,
        getattr(schema.model, "attention", "auto"),
    )


def _checkpoint_bytes(trainable: str, schema: ShardTraining) -> int:
    """Return about how many bytes a checkpoint of ``trainable`` takes."""
    from mmldm_scale.planning import workload

    return workload.checkpoint_bytes(registered(trainable).outline(schema), schema.training)


def _meet() -> tuple[list[Finding], Ranks | None]:
    """Join the other ranks; where that fails, say so."""
    met: list[Ranks] = []

    def meet() -> Iterator[Finding]:
        met.append(ranks.join(MEETING))
        yield Finding("ok", "ranks", f"{met[0].size} met")

    found = examine(Check("ranks", meet, MEETING + 10))
    return found, met[0] if met else None


def checks(request: Request, here: Ranks) -> list[Check]:
    """Return what this rank looks at, in order; those that all ranks take part in are the same on all."""
    where, beside = devices.device(here.local_rank), _processes_beside(here)
    dtype = DTYPES[request.precision] if request.precision else devices.working_precision(where)
    chosen = [
        Check("GPU", lambda: devices.gpu(here.local_rank)),
        Check("attention", lambda: devices.attention(where, dtype, request.attention), 60.0),
    ]
    if here.local_rank == 0:
        chosen = [
            Check("versions", software.versions),
            *([] if request.quick else [Check("codecs", software.codecs)]),
            Check("driver", devices.node),
            *chosen,
            Check("processors", lambda: host.processors(beside, request.workers)),
            Check("memory", lambda: host.memory(beside, request.workers)),
            Check("open files", host.open_files),
            Check("shared memory", lambda: host.shared_memory(beside, request.workers)),
            Check("SLURM", host.slurm_job),
            Check("disk", lambda: storage.disk(request.run, request.checkpoint(), request.kept), 60.0),
            Check("run folder", lambda: storage.clock_and_rights(request.run)),
            *(_shard_check(location, here.rank, 2.0 if request.quick else 10.0) for location in request.shards),
        ]
    if here.size == 1:
        alone = Finding("ok", "ranks", "alone: start it with srun or --processes 2 to try what is between ranks")
        return [*chosen, Check("ranks", lambda: [alone])]
    return [
        *chosen,
        Check("agreement", lambda: ranks.agreement(here), 120.0),
        Check("clocks", lambda: ranks.clocks(here), 60.0),
        Check("all-reduce", lambda: ranks.all_reduce(here, 16 if request.quick else 64), 120.0),
    ]


def _shard_check(location: str, rank: int, seconds: float) -> Check:
    return Check("shards", lambda: shards.look(location, rank, seconds), 30.0 + seconds)


def _processes_beside(here: Ranks) -> int:
    """Return how many ranks run on this node: what a launcher says, or else all."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if name in os.environ:
            return int(os.environ[name].partition("(")[0].partition(",")[0])
    return here.size
