"""``mmldm launch``: submits a training, or a sweep of them, as SLURM jobs, through submitit.

    mmldm launch train dit --nodes 16 --gpus-per-node 8 --preset L shards=data/audioset/latents run=runs/dit_L

``RUN/launch-1/`` (the next time ``launch-2``) holds what a job needs: its configuration, a copy of the code, submitit's
files and the log.

submitit starts one process for each job. That process runs ``mmldm train --under srun …`` as the job scripts do (see
:mod:`mmldm_scale.cluster.requeue`), which starts one task for each GPU. The trainer answers SLURM's signals, since its
ranks have to save together: submitit's own handler would call ``checkpoint()`` on one process alone.
"""

import argparse
import contextlib
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from mmldm_scale import config
from mmldm_scale.cluster import code_snapshot
from mmldm_scale.cluster.submit import Jobs, Resources, queue, read_request, require_least
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining, arguments
from mmldm_scale.launch import sweep
from mmldm_scale.launch.sweep import Run
from mmldm_scale.runs import launches
from mmldm_scale.trainables.inputs import check_inputs
from mmldm_scale.trainables.registry import registered

UNLIMITED = 1_000_000  # requeues by submitit after a time-out; cluster/requeue.py limits those after failures


@dataclass
class TrainingRequest(Resources):
    """``mmldm launch --slurm``: what each job asks of SLURM."""

    nodes: int = 1  # nodes of each job
    tasks: int = 0  # training processes of each node without GPUs; with GPUs there is one for each GPU
    grace: int = 120  # [seconds] before the time limit at which the training saves and stops
    parallel: int = 100  # runs of a sweep at the same time

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("nodes", 1), ("tasks", 0), ("grace", 1), ("parallel", 1)):
            require_least(self, key, least)
        if self.grace >= 3600 * self.hours:
            raise UserError(f"grace: {self.grace} seconds must be less than hours = {self.hours:g}")

    def tasks_per_node(self) -> int:
        """Return the number of training processes on each node; raise UserError if the request does not say it."""
        if (self.gpus > 0) == (self.tasks > 0):
            raise UserError("give either --gpus-per-node N or, for nodes without GPUs, --tasks-per-node N")
        return self.gpus or self.tasks


@dataclass(frozen=True)
class FirstProcess:
    """What submitit calls in a job's first process: ``mmldm`` with ``arguments``, as ``python -m`` would run it."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; raise SystemExit unless it succeeds."""
        sys.argv[1:] = self.arguments
        try:
            runpy.run_module("mmldm_scale.cli", run_name="__main__")
        except SystemExit as end:
            if end.code:  # submitit takes any SystemExit for a failure
                raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit submits if a signal comes before the command runs: the same command."""
        return submitit.helpers.DelayedSubmission(self)


def run(args: argparse.Namespace) -> int:
    """Submit what the arguments of ``mmldm launch`` ask for, print the jobs, and return the exit status.

    Raises:
        UserError: the request, a configuration, its inputs or a run's folder are not valid, or SLURM refuses.
    """
    record = registered(args.trainable)
    flags = {"nodes": args.nodes, "gpus": args.gpus_per_node, "tasks": args.tasks_per_node}
    settings = [f"{key}={value}" for key, value in flags.items() if value is not None]
    request = read_request(TrainingRequest, [*args.slurm, *settings])
    files = arguments.files(args, record.name)
    base, runs = sweep.compose(record.name, files, args.overrides, args.sweep)
    for one in runs:
        check_inputs(record, one.schema)  # before the imports that take seconds
    with _environment_restored():
        for one in runs:
            _check(one.schema, request.nodes * request.tasks_per_node())
    arguments.require_configuration(args, record.name, base)
    folder = _new_folder(base)
    try:
        code = code_snapshot.take(folder / "code")
        jobs = _submit(record.name, base.resolve().name, runs, folder, code, request)
    except BaseException:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # not empty: a run has begun in it
            base.rmdir()
        raise
    launches.write(folder, {run.name: job.job_id for run, job in zip(runs, jobs.jobs, strict=True)})
    _report(record.name, runs, folder, code, request, jobs)
    return 0


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo the block's changes of the environment, which sbatch passes on to the job.

    Importing DeepSpeed on a machine without GPUs sets a variable that would make the job compute on CPUs.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check(schema: ShardTraining, processes: int) -> None:
    """Check now what would stop the job when it starts.

    Raises:
        UserError: the batch does not divide over the ``processes``, or the run was begun with another configuration.
    """
    from mmldm_scale.training import run_folder
    from mmldm_scale.training.engine import deepspeed_engine

    deepspeed_engine.deepspeed_config(schema.training, processes)
    run_folder.check(Path(schema.run), schema)


def _new_folder(base: Path) -> Path:
    """Make and return ``base/launch-N``, N being the next free number."""
    number = 1
    while True:
        folder = base.resolve() / f"launch-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{folder}: cannot be made: {error.strerror}") from None


def _submit(
    trainable: str,
    name: str,
    runs: Sequence[Run],
    folder: Path,
    code: code_snapshot.CodeSnapshot,
    request: TrainingRequest,
) -> Jobs:
    srun = f"srun --kill-on-bad-exit=1 --cpus-per-task={request.cpus}"
    work = []
    for run in runs:
        file = folder / f"{run.name or 'config'}.yaml"
        file.write_text(config.dump(run.schema))
        work.append(FirstProcess(("train", trainable, "--under", srun, "--config", str(file))))
    return queue(
        work,
        folder,
        name,
        request,
        UNLIMITED,
        nodes=request.nodes,
        ntasks_per_node=request.tasks_per_node(),
        signal_delay_s=request.grace,
        array_parallelism=request.parallel,
        stderr_to_stdout=True,
        setup=_setup(code, request),
        use_srun=False,
    )


def _setup(code: code_snapshot.CodeSnapshot, request: TrainingRequest) -> list[str]:
    """Return the shell lines that precede the tasks: the job scripts' prologue, threads, and the copy of the code."""
    return [
        *([f"source {shlex.quote(str(code.prologue))}"] if code.prologue else []),
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{request.cpus}}}"',
        f'export PYTHONPATH={shlex.quote(str(code.folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1  # else the folder that the job starts in would come first",
    ]


def _report(
    trainable: str,
    runs: Sequence[Run],
    folder: Path,
    code: code_snapshot.CodeSnapshot,
    request: TrainingRequest,
    jobs: Jobs,
) -> None:
    count = f"{len(runs)} × " if len(runs) > 1 else ""
    print(f"job {jobs.id}: {count}mmldm train {trainable} on {request.nodes} × {request.tasks_per_node()} tasks")
    if len(runs) > 1:
        rows = [("task", *runs[0].values, "run")]
        rows += [(str(number), *run.values.values(), run.schema.run) for number, run in enumerate(runs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ", "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"   code    {code.folder} ({code.origin})")
    print(f"   follow  tail -F {shlex.quote(str(folder))}/{jobs.id}_*_log.out")
    print(f"   state   squeue --jobs={jobs.id}")
    print(f"   cancel  scancel {jobs.id}   (the run saves; the job is not requeued)", flush=True)
