"""SLURM jobs through submitit, queued again when they are interrupted.

``submit(command, folder, 8, "latents", ask)`` starts one command as the jobs of an array, and returns :class:`Jobs`,
which says what SLURM still has of them and how the others ended. The command has to be idempotent and to share its work
by itself: a job that runs into its time limit, or is preempted, starts it anew. ``queue()`` is the part beneath, which
``mmldm launch`` uses too. Logs and submitit's own files lie in ``folder``.
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
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent


@dataclass
class Resources:
    """What a job asks of SLURM."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # your cluster's name for the nodes that fit
    hours: float = 24.0  # until a job is interrupted and queued again
    gpus: int = 0  # of each node
    cpus: int = 8  # of each task
    memory_gb: int = 0  # of each node; 0: what the cluster gives by itself

    def __post_init__(self) -> None:
        for key, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 0)):
            require_least(self, key, least)
        if self.hours <= 0:
            raise UserError(f"hours: {self.hours:g}; more than 0 fits")


@dataclass
class JobRequest(Resources):
    """What each job of :func:`submit` asks for: one task on one node."""

    requeues: int = 20  # times that a job may run into its time limit

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "requeues", 0)


Request = TypeVar("Request", bound=Resources)


def read_request(kind: type[Request], settings: Sequence[str]) -> Request:
    """Return the request that ``settings`` describe: "partition=gpu" and the like, and YAML files of such keys.

    Raises:
        UserError: a key or value does not fit.
    """
    files = [text for text in settings if text.endswith((".yaml", ".yml"))]
    return config.load(kind, files, [text for text in settings if text not in files])


def require_least(request: Resources, key: str, least: int) -> None:
    """Raise UserError if the setting ``key`` of ``request`` is below ``least``."""
    if getattr(request, key) < least:
        raise UserError(f"{key}: {getattr(request, key)}; {least} or more fits")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: the command's exit status; negative: the signal that killed it.
        output: what the command wrote to its standard output.
        problem: why the job failed although the command did not; its status is then 1.
    """

    status: int
    output: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Command:
    """What runs inside a job. Only submitit, told by SLURM, or SIGKILL ends it: it is deaf to the job's signals."""

    arguments: tuple[str, ...]

    def __call__(self) -> Outcome:
        """Run the command to its end; its standard output goes to the job's log, too."""
        process = subprocess.Popen(
            self.arguments, stdout=subprocess.PIPE, text=True, errors="replace", preexec_fn=_prepare_child
        )
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
            return Outcome(process.wait(), "".join(lines))
        except BaseException:  # submitit leaves from within a signal handler
            process.kill()
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Tell submitit what to do when the job runs again: the same."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Jobs:
    """The jobs of one array, numbered from 0."""

    jobs: list[submitit.SlurmJob]

    @property
    def id(self) -> str:
        """SLURM's id of the whole array."""
        return self.jobs[0].job_id.partition("_")[0]

    def states(self) -> dict[int, str] | None:
        """Return the states ("PENDING", "RUNNING", …) of the jobs that SLURM still has; None if it does not answer."""
        command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={self.id}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode != 0:
            return {} if "Invalid job id" in done.stderr else None  # it forgets finished jobs after some minutes
        found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return {number: found[job.job_id] for number, job in enumerate(self.jobs) if job.job_id in found}

    def outcome(self, number: int) -> Outcome | None:
        """Return how job ``number`` ended; None while it has not, and for ever if SLURM killed it."""
        file = self.jobs[number].paths.result_pickle  # written by our own job
        if not file.exists():
            return None
        kind, result = pickle_load(file)
        return result if kind == "success" else Outcome(1, problem=result.strip().splitlines()[-1])

    def log(self, number: int) -> Path:
        """Return the file that job ``number`` writes its standard error to."""
        return self.jobs[number].paths.stderr

    def cancel(self) -> None:
        """Have SLURM end what is left of the jobs."""
        subprocess.run(["scancel", self.id], capture_output=True, timeout=60)


def submit(
    command: Sequence[str], folder: Path, count: int, name: str, ask: JobRequest, setup: Sequence[str] = ()
) -> Jobs:
    """Submit ``count`` jobs that each run ``command``, and return at once.

    Args:
        folder: for logs, on a disk that the nodes share; made if missing.
        name: of the jobs.
        setup: lines of shell that come before the command.

    Raises:
        UserError: there is no SLURM here, or it refuses the request; carries SLURM's own words.
    """
    work = [Command(tuple(command))] * count
    return queue(work, folder, name, ask, ask.requeues, array_parallelism=count, setup=list(setup))


def queue(
    work: Sequence[Callable[[], object]], folder: Path, name: str, ask: Resources, requeues: int, **parameters: Any
) -> Jobs:
    """Submit a job for each callable of ``work`` (several: an array), which all tasks of the job call; return at once.

    Args:
        folder, name: as for :func:`submit`.
        requeues: times that submitit may queue a job again that ran into its time limit.
        parameters: more for submitit's executor; without them a job is one task on one node.

    Raises: as :func:`submit`.
    """
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is not on PATH: submit jobs from a node of a SLURM cluster")
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=requeues)
    given = {key: getattr(ask, key) for key in ("partition", "account", "qos", "constraint") if getattr(ask, key)}
    given |= {"gpus_per_node": ask.gpus} if ask.gpus else {}
    given |= {"mem": f"{ask.memory_gb}GB"} if ask.memory_gb else {}
    executor.update_parameters(
        job_name=name,
        time=math.ceil(60 * ask.hours),  # minutes
        cpus_per_task=ask.cpus,
        additional_parameters={"requeue": True},
        **({"nodes": 1, "ntasks_per_node": 1} | given | parameters),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # sbatch's words are in the exception
            jobs = [executor.submit(one) for one in work]
    except FailedJobError as error:
        words = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError(f"SLURM refuses the jobs: {(words or str(error).splitlines())[-1]}") from None
    return Jobs(jobs)


def _prepare_child() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM signals every process of the job
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
