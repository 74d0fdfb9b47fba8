"""One command as several SLURM jobs: a job array through submitit, queued again when it is interrupted.

``submit(command, folder, 8, "latents", ask)`` returns :class:`Jobs`, which says what SLURM still has of them and how
the others ended. The command has to be idempotent and to share its work by itself: a job that runs into its time limit,
or is preempted, starts it anew. Logs and submitit's own files lie in ``folder``.
"""

import contextlib
import io
import math
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, pickle_load

from mmldm_scale.errors import UserError
from mmldm_scale.processes import die_with_parent


@dataclass
class JobRequest:
    """What each job asks of SLURM; ``config.load(JobRequest, files, ["partition=gpu", …])`` makes one."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # your cluster's name for the nodes that fit
    hours: float = 24.0  # until a job is interrupted and queued again
    gpus: int = 0
    cpus: int = 8
    memory_gb: int = 0  # 0: what the cluster gives by itself
    requeues: int = 20  # times that a job may run into its time limit

    def __post_init__(self) -> None:
        for key, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 0), ("requeues", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key}: {getattr(self, key)}; {least} or more fits")
        if self.hours <= 0:
            raise UserError(f"hours: {self.hours:g}; more than 0 fits")


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

    jobs: list[submitit.Job]

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
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is not on PATH: submit jobs from a node of a SLURM cluster")
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=ask.requeues)
    given = {key: getattr(ask, key) for key in ("partition", "account", "qos", "constraint") if getattr(ask, key)}
    given |= {"gpus_per_node": ask.gpus} if ask.gpus else {}
    given |= {"mem": f"{ask.memory_gb}GB"} if ask.memory_gb else {}
    executor.update_parameters(
        job_name=name,
        time=math.ceil(60 * ask.hours),  # minutes
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=ask.cpus,
        array_parallelism=count,
        setup=list(setup),
        additional_parameters={"requeue": True},
        **given,
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # sbatch's words are in the exception
            jobs = [executor.submit(Command(tuple(command))) for _ in range(count)]
    except FailedJobError as error:
        words = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError(f"SLURM refuses the jobs: {(words or str(error).splitlines())[-1]}") from None
    return Jobs(jobs)


def _prepare_child() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM signals every process of the job
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
