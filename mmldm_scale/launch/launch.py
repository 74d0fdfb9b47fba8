"""``mmldm launch``: a training, or a sweep of them, as SLURM jobs from one command, through submitit.

    mmldm launch train dit --nodes 16 --gpus-per-node 8 --config configs/dit/L.yaml shards=data/latents run=runs/dit_L

The configurations are composed and checked here, where a mistake is one line. What a job needs then lies in
``RUN/launch-1/`` (the next time ``launch-2``): its configuration, a copy of the code, submitit's files and the log.

submitit submits, and its process, the job's first, runs ``mmldm train`` as the job scripts do (see
:mod:`mmldm_scale.cluster.requeue`), which starts one task for each GPU. Signals are the trainer's to answer, since its
ranks have to save together: submitit's own handler calls ``checkpoint()`` on one process alone.
"""

import argparse
import contextlib
import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit

from mmldm_scale import config
from mmldm_scale.cluster import code_snapshot
from mmldm_scale.cluster.submit import Jobs, Resources, queue, read_request, require_least
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining
from mmldm_scale.trainables.registry import registered

UNLIMITED = 1_000_000  # requeues by submitit, which are the rare ones: cluster/requeue.py knows when it is no use


@dataclass
class TrainingRequest(Resources):
    """What each job of a launch asks of SLURM."""

    nodes: int = 1
    tasks: int = 0  # on each node, where there are no GPUs; with GPUs there is one for each
    grace: int = 120  # seconds before the time limit at which the job is told to save
    parallel: int = 100  # runs of a sweep at the same time

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("nodes", 1), ("tasks", 0), ("grace", 1), ("parallel", 1)):
            require_least(self, key, least)
        if self.grace >= 3600 * self.hours:
            raise UserError(f"grace: {self.grace} seconds before the end of {self.hours:g} hours; less fits")

    def tasks_per_node(self) -> int:
        """Return the number of tasks on each node; raise UserError if it is not clear."""
        if (self.gpus > 0) == (self.tasks > 0):
            raise UserError(
                "give --gpus-per-node N, for a task on each GPU, or where there are none --tasks-per-node N"
            )
        return self.gpus or self.tasks


@dataclass(frozen=True)
class Run:
    """One training of a launch.

    Attributes:
        name: of its combination; empty if there is no sweep.
        values: the swept keys' values.
        schema: the composed configuration.
    """

    name: str
    values: dict[str, str]
    schema: ShardTraining


@dataclass(frozen=True)
class FirstProcess:
    """What submitit calls in a job's first process: ``mmldm`` with ``arguments``."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; leave by SystemExit unless it succeeds."""
        from mmldm_scale import cli

        status = cli.main(self.arguments)
        if status:
            sys.exit(status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Tell submitit what to do if a signal comes before the command runs: the same once more."""
        return submitit.helpers.DelayedSubmission(self)


def launch(args: argparse.Namespace) -> int:
    """Submit what the arguments of ``mmldm launch`` ask for, say what it became, and return the exit status.

    Raises:
        UserError: the request, a configuration, the shards or a run's folder do not fit, or SLURM refuses.
    """
    flags = {"nodes": args.nodes, "gpus": args.gpus_per_node, "tasks": args.tasks_per_node}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    ask = read_request(TrainingRequest, [*args.slurm, *given])
    base, runs = plan(args.model, args.config, args.overrides, args.sweep)
    with _environment_kept():
        for run in runs:
            _check(args.model, run.schema, ask.nodes * ask.tasks_per_node())
    folder = _new_folder(base)
    try:
        code = code_snapshot.take(folder / "code")
        jobs = _submit(args.model, base.resolve().name, runs, folder, code, ask)
    except BaseException:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # it is a run's already
            base.rmdir()
        raise
    _report(args.model, runs, folder, code, ask, jobs)
    return 0


def plan(model: str, files: Sequence[str], overrides: Sequence[str], sweeps: Sequence[str]) -> tuple[Path, list[Run]]:
    """Compose the configuration of each combination of ``sweeps``; without any there is one.

    Returns: the folder of the launch, and the runs, of a sweep each in a folder of its own below.

    Raises:
        UserError: a configuration or a sweep does not fit.
    """
    axes = [_axis(text) for text in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys) or "run" in keys:
        raise UserError(f"--sweep: {', '.join(keys)}: each key once, and not run, which names the folder of them all")
    runs = []
    for values in itertools.product(*(values for _, values in axes)):
        combination = dict(zip(keys, values, strict=True))
        assigned = [f"{key}={value}" for key, value in combination.items()]
        schema = config.load(registered(model).schema(), files, [*overrides, *assigned])
        runs.append(Run(_name(combination), combination, schema))
    names = [run.name for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--sweep: two combinations are called {twice[0]}; give each value once")
    base = Path(runs[0].schema.run)
    if not sweeps:
        return base, runs
    return base, [replace(run, schema=replace(run.schema, run=str(base / run.name))) for run in runs]


def _axis(text: str) -> tuple[str, list[str]]:
    """Split "key=a,b" into its key and values; commas in brackets belong to a value."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"--sweep {text}: has the form key=value,value")
    return key, re.split(r",(?![^\[{(]*[\]})])", values)


def _name(combination: dict[str, str]) -> str:
    """Return a name for the folder of a combination: "learning_rate=1e-4,seed=0"."""
    short = [key.rpartition(".")[2] for key in combination]
    keys = short if len(set(short)) == len(short) else list(combination)
    name = ",".join(f"{key}={value}" for key, value in zip(keys, combination.values(), strict=True))
    return re.sub(r"[^\w.,=+-]+", "-", name)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what the block does to the environment, which sbatch hands on to the job.

    Where DeepSpeed is imported, a machine without GPUs is noted in it, and this one need not be like the job's nodes.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check(model: str, schema: ShardTraining, processes: int) -> None:
    """Find now what the job would stumble over when it starts.

    Raises:
        UserError: the shards are missing or of another kind, the batch does not divide over the ``processes``, or the
            run was begun with another configuration.
    """
    from mmldm_scale.shards.manifest import Manifest
    from mmldm_scale.shards.remote.remote import is_url
    from mmldm_scale.training import run_folder
    from mmldm_scale.training.engine import deepspeed_engine

    for location in schema.shards:
        if not is_url(location):
            Manifest.read(location, registered(model).shards)
    deepspeed_engine.deepspeed_config(schema.training, processes)
    run_folder.check(Path(schema.run), schema)


def _new_folder(base: Path) -> Path:
    """Make and return ``base/launch-N``, N the next number."""
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
    model: str, name: str, runs: Sequence[Run], folder: Path, code: code_snapshot.CodeSnapshot, ask: TrainingRequest
) -> Jobs:
    srun = f"srun --kill-on-bad-exit=1 --cpus-per-task={ask.cpus}"
    work = []
    for run in runs:
        file = folder / f"{run.name or 'config'}.yaml"
        file.write_text(config.dump(run.schema))
        work.append(FirstProcess(("train", model, "--launch", srun, "--config", str(file))))
    return queue(
        work,
        folder,
        name,
        ask,
        UNLIMITED,
        nodes=ask.nodes,
        ntasks_per_node=ask.tasks_per_node(),
        signal_delay_s=ask.grace,
        array_parallelism=ask.parallel,
        stderr_to_stdout=True,
        setup=_setup(code, ask),
        use_srun=False,
    )


def _setup(code: code_snapshot.CodeSnapshot, ask: TrainingRequest) -> list[str]:
    """Return the lines of shell that come before the tasks: what the job scripts do, too, and the copied code."""
    return [
        *([f"source {shlex.quote(str(code.prologue))}"] if code.prologue else []),
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{ask.cpus}}}"',
        f'export PYTHONPATH={shlex.quote(str(code.folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1  # else the folder that the job starts in would come first",
    ]


def _report(
    model: str, runs: Sequence[Run], folder: Path, code: code_snapshot.CodeSnapshot, ask: TrainingRequest, jobs: Jobs
) -> None:
    count = f"{len(runs)} × " if len(runs) > 1 else ""
    print(f"job {jobs.id}: {count}mmldm train {model} on {ask.nodes} × {ask.tasks_per_node()} tasks")
    if len(runs) > 1:
        rows = [("task", *runs[0].values, "run")]
        rows += [(str(number), *run.values.values(), run.schema.run) for number, run in enumerate(runs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ", "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"   code    {code.folder} ({code.origin})")
    print(f"   follow  tail -F {shlex.quote(str(folder))}/{jobs.id}_*_log.out")
    print(f"   state   squeue --jobs={jobs.id}")
    print(f"   cancel  scancel {jobs.id}   (it saves, and is not queued again)", flush=True)
