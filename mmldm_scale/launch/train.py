"""``mmldm train``: in this process, in several processes on this machine, or as the tasks of a SLURM job."""

import argparse
import shlex
from pathlib import Path

from mmldm_scale import config
from mmldm_scale.cluster import slurm
from mmldm_scale.common import leases
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.processes import follow_launcher, own_command
from mmldm_scale.config import ShardTraining, arguments
from mmldm_scale.trainables.inputs import check_inputs
from mmldm_scale.trainables.registry import Registration, registered
from mmldm_scale.training.resilience.signals import end_at_ctrl_c

PROGRAM = "mmldm"  # as the last word of --under: run what has this name there, such as a container's


def run(args: argparse.Namespace) -> int:
    """Train as the arguments of ``mmldm train`` ask; return the exit status.

    Raises:
        UserError: there is no such trainable or preset, or the configuration, the data or the checkpoints cannot work.
    """
    record = registered(args.trainable)
    files = arguments.files(args, record.name)
    if args.print_config:
        print(config.render(record.schema(), files, args.overrides), end="")
        return 0
    schema = config.load(record.schema(), files, args.overrides)
    arguments.require_configuration(args, record.name, Path(schema.run))
    job = slurm.job()
    if not (args.under and job and job.restarts):  # a file system that fails now must not keep a job from its requeue
        inputs = check_inputs(record, schema)  # before the imports that take seconds
    if args.check:
        return _report_check(record, schema, inputs)
    same = [record.name, *arguments.words(args)]
    if args.under:
        from mmldm_scale.cluster import requeue

        launcher = shlex.split(args.under)
        program = launcher if launcher[-1:] == [PROGRAM] else [*launcher, *own_command()]
        doctor = [*program, "doctor", "--quick", "--trainable", *same]
        return requeue.supervise([*program, "train", *same], Path(schema.run), doctor)
    if args.processes:
        from mmldm_scale.cluster import local_launcher

        return local_launcher.run(args.processes, ["train", *same])
    follow_launcher()
    end_at_ctrl_c(Path(schema.run))
    from mmldm_scale.training import loop

    return loop.train(record.build, schema, arguments.describe(args))


def _report_check(record: Registration, schema: ShardTraining, inputs: list[str]) -> int:
    """Print what ``mmldm train --check`` has found; return 0.

    Raises:
        UserError: the run was started with other settings, or its checkpoints are gone.
    """
    from mmldm_scale.training import run_folder

    run = Path(schema.run)
    run_folder.check(run, schema)
    newest = max(find_checkpoints(run), default=0)
    state = f"resumes from {newest:,} samples" if newest else "starts from 0 samples"
    print(f"{run}: mmldm train {record.name} {state}, with")
    for line in inputs:
        print(f"   {line}")
    holder, is_alive = leases.peek(run, "run") or ({}, False)
    if is_alive:
        print(f"   {leases.describe(holder)} is training this run now; until that ends, a start is refused")
    print(
        "not checked: how the batch divides over the processes, GPUs, memory, disk and the files' contents, which the "
        "job's doctor and the start check",
        flush=True,
    )
    return 0
