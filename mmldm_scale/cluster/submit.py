"""Submits SLURM jobs through submitit, which requeues them when they are interrupted.

``submit(command, folder, 8, "latents", request)`` runs one command in each job of an array and returns :class:`Jobs`,
which has the states of the jobs and the outcomes of those that ended. The command must be idempotent, and its copies
must share the work among themselves: a job that reaches its time limit or is preempted starts it again. ``queue()``
submits any callables; ``mmldm launch`` uses it. Logs and submitit's files are in ``folder``.
"""

import contextlib
import io
import math
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError, pickle_load

from mmldm_scale import config
from mmldm_scale.common.addresses import require_local
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent


@dataclass
class Resources:
    """The resources that a job requests from SLURM."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # a feature of the nodes, as your cluster names it
    hours: float = 24.0  # time limit; a job that reaches it is requeued
    gpus: int = 0  # of each node
    cpus: int = 8  # of each task
    memory_gb: int = 0  # of each node; 0: the cluster's default

    def __post_init__(self) -> None:
        for key, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 0)):
            require_least(self, key, least)
        if self.hours <= 0:
            raise UserError(f"hours: {self.hours:g}; must be greater than 0")


@dataclass
class JobRequest(Resources):
    """The resources of each job of :func:`submit`: one task on one node."""

    requeues: int = 20  # number of times that a job may reach its time limit

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "requeues", 0)


Request = TypeVar("Request", bound=Resources)


def read_request(kind: type[Request], settings: Sequence[str]) -> Request:
    """Return the request in ``settings``: "partition=gpu" and other "key=value" strings, and YAML files of such keys.

    Raises:
        UserError: a key or value is not valid.
    """
    files = [text for text in settings if text.endswith((".yaml", ".yml"))]
    for file in files:
        require_local("--slurm", file)
    return config.load(kind, files, [text for text in settings if text not in files])


def require_least(request: Resources, key: str, least: int) -> None:
    """Raise UserError if the setting ``key`` of ``request`` is below ``least``."""
    if getattr(request, key) < least:
        raise UserError(f"{key}: {getattr(request, key)}; must be at least {least}")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: the command's exit status; if negative, minus the signal that killed it.
        output: the command's standard output.
        problem: why the job failed although the command did not; ``status`` is 1 then.
    """

    status: int
    output: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Command:
    """The command of a job. It ignores the signals that SLURM sends to the job; submitit kills it when the job ends."""

    arguments: tuple[str, ...]

    def __call__(self) -> Outcome:
        """Run the command and return its outcome; its standard output also goes to the job's log."""
        process = subprocess.Popen(
            self.arguments, stdout=subprocess.PIPE, text=True, errors="replace", preexec_fn=_prepare_child
        )
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
            return Outcome(process.wait(), "".join(lines))
        except BaseException:  # submitit raises SystemExit in a signal handler
            process.kill()
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit submits when the job is interrupted: the same command."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Jobs:
    """The jobs of one array, numbered from 0."""

    jobs: Sequence[submitit.Job[Any]]

    @property
    def id(self) -> str:
        """SLURM's id of the whole array."""
        return self.jobs[0].job_id.partition("_")[0]

    def states(self) -> dict[int, str] | None:
        """Return the states ("PENDING", "RUNNING", …) of the jobs that squeue lists; None if SLURM does not answer."""
        command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={self.id}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode != 0:
            return {} if "Invalid job id" in done.stderr else None  # SLURM removes ended jobs after some minutes
        states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return {number: states[job.job_id] for number, job in enumerate(self.jobs) if job.job_id in states}

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of job ``number``; None if it has not ended, or if SLURM killed it."""
        file = self.jobs[number].paths.result_pickle  # our own job wrote it: safe to unpickle
        if not file.exists():
            return None
        kind, result = pickle_load(file)
        return result if kind == "success" else Outcome(1, problem=result.strip().splitlines()[-1])

    def log(self, number: int) -> Path:
        """Return the file with the standard error of job ``number``."""
        return self.jobs[number].paths.stderr

    def cancel(self) -> None:
        """Cancel the jobs that have not ended."""
        subprocess.run(["scancel", self.id], capture_output=True, timeout=60)


def submit(
    command: Sequence[str], folder: Path, count: int, name: str, request: JobRequest, setup: Sequence[str] = ()
) -> Jobs:
    """Submit ``count`` jobs that each run ``command``; return without waiting for them.

    Args:
        folder: for the logs, on a disk that the nodes share; created if missing.
        name: of the jobs.
        setup: shell lines that precede the command.

    Raises:
        UserError: SLURM's commands are missing, or SLURM refuses the request; the message quotes SLURM.
    """
    work = [Command(tuple(command))] * count
    return queue(work, folder, name, request, request.requeues, array_parallelism=count, setup=list(setup))


def queue(
    work: Sequence[Callable[[], object]], folder: Path, name: str, request: Resources, requeues: int, **parameters: Any
) -> Jobs:
    """Submit a job for each callable of ``work``, an array if there are several; return without waiting for them.

    Args:
        folder, name: as for :func:`submit`.
        requeues: number of times that submitit requeues a job that reached its time limit.
        parameters: further parameters of submitit's executor; without them a job is one task on one node.

    Raises: as :func:`submit`.
    """
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise UserError(f"{program}: not found on PATH; submit jobs from a node of a SLURM cluster")
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=requeues)
    names = ("partition", "account", "qos", "constraint")
    requested: dict[str, Any] = {name: getattr(request, name) for name in names if getattr(request, name)}
    requested |= {"gpus_per_node": request.gpus} if request.gpus else {}
    requested |= {"mem": f"{request.memory_gb}GB"} if request.memory_gb else {}
    executor.update_parameters(
        job_name=name,
        time=math.ceil(60 * request.hours),  # minutes
        cpus_per_task=request.cpus,
        additional_parameters={"requeue": True},
        **({"nodes": 1, "ntasks_per_node": 1} | requested | parameters),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # the exception quotes sbatch
            jobs = [executor.submit(callable_) for callable_ in work]
    except FailedJobError as error:
        refusals = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError(f"SLURM refuses the jobs: {(refusals or str(error).splitlines())[-1]}") from None
    return Jobs(jobs)


def _prepare_child() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends signals to every process of the job
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
