"""SLURM as seen by a process that it started: its rank and rendezvous, its job, and requests to ``scontrol``.

Call ``export_rendezvous()`` before ``deepspeed.init_distributed``, which reads none of SLURM's variables (under plain
``srun`` it would look for MPI and fail). It sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from SLURM's
variables. If these five are already set, for example by torchrun, they are kept; so are MASTER_ADDR and MASTER_PORT
where only these are set, as scripts of jobs do. A process that ``srun`` did not start,
such as one run directly in a batch script, gets a world size of 1.

Only this package reads SLURM's environment variables and calls its commands.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmldm_scale.common.errors import UserError

RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Below the ports that Linux uses for outgoing connections (32768 and up), above those of most services.
FIRST_PORT, PORTS = 20_000, 12_000
SCONTROL_TIMEOUT = 60  # seconds
SQUEUE_TIMEOUT = 20  # seconds

# slurmd signals every process of a job that it ends. Without this, scontrol may die before it prints SLURM's answer.
_IGNORE_SIGNALS = ("sh", "-c", 'trap "" TERM USR1 USR2; exec "$@"', "sh")


class SlurmError(RuntimeError):
    """SLURM refused a request or did not answer; the message quotes SLURM."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of a run meet, and which of them this one is; port 0: nothing listens there."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


@dataclass(frozen=True)
class SlurmJob:
    """The SLURM job that this process belongs to."""

    id: str  # "123", or "123_4" for task 4 of an array
    name: str
    restarts: int  # number of times that the job was requeued and started again
    tasks: int  # number of tasks of the job, on all nodes


def export_rendezvous() -> Rendezvous:
    """Find this process's rendezvous and set the environment variables that torch and DeepSpeed read.

    Raises:
        UserError: RANK is set and not the other four; MASTER_PORT is none.
        SlurmError: SLURM does not return the address of the first node.
    """
    place = find_rendezvous(os.environ)
    values = (place.rank, place.local_rank, place.world_size, place.address, place.port)
    os.environ.update({name: str(value) for name, value in zip(RENDEZVOUS, values, strict=True)})
    return place


def find_rendezvous(env: Mapping[str, str]) -> Rendezvous:
    """Return the rendezvous from a launcher's five variables, else from SLURM's job step, else one of world size 1.

    Raises: as :func:`export_rendezvous`.
    """
    if "RANK" in env:
        return _from_launcher(env)
    if in_step(env):
        return _from_step(env)
    return Rendezvous(0, 0, 1, "127.0.0.1", 0)


def job(env: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """Return the job of this process; None outside of SLURM."""
    if "SLURM_JOB_ID" not in env:
        return None
    number = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        number = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return SlurmJob(number, env.get("SLURM_JOB_NAME", ""), _restarts(env), int(env.get("SLURM_NTASKS", "1")))


def in_step(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether ``srun`` started this process."""
    return "SLURM_STEP_ID" in env


def rank(env: Mapping[str, str] = os.environ) -> int:
    """Return the rank of this process from the launcher's or SLURM's variables; 0 if nothing launched it."""
    return int(env.get("RANK", env.get("SLURM_PROCID", "0")))


def peers(env: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Return (rank, local rank, count) of this process among those that a launcher, or ``srun``, started together.

    A process that was started alone has (0, 0, 1). Unlike :func:`find_rendezvous` this asks nobody where to meet.
    """
    if "RANK" in env:
        return int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), int(env.get("WORLD_SIZE", "1"))
    if in_step(env):
        names = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
        rank, local_rank, count = (int(env.get(name, default)) for name, default in names.items())
        return rank, local_rank, count
    return 0, 0, 1


def tasks_on_node(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of tasks of this job step on this node; None outside of a step."""
    counts: list[int] = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(tasks)] * int(nodes or 1)  # "8(x2),4": 8, 8 and 4
    node = int(env.get("SLURM_NODEID", "0"))  # among those of the step
    return counts[node] if node < len(counts) else None


def processes_on_node(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of processes on this node: the launcher's, else the job step's; None if neither tells."""
    return int(env["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in env else tasks_on_node(env)


def gpus_on_node(env: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs that SLURM allocated on this node; 0 outside of SLURM."""
    return int(env.get("SLURM_GPUS_ON_NODE", "0"))


def cpus_per_task(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of CPUs that the job requested for each task; None if it did not."""
    return int(env["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in env else None


def node_name(env: Mapping[str, str] = os.environ) -> str:
    """Return SLURM's name of this node; outside of SLURM the host name."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def array_share(env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (index, count): which of ``count`` equal shares of the work this task of an array job takes.

    Outside of an array job there is one share: (0, 1).

    Raises:
        UserError: the task ids of the array are not evenly spaced, so that a task cannot compute its index.
    """
    if "SLURM_ARRAY_TASK_ID" not in env:
        return 0, 1
    task, first, last, step, count = (
        int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    if (last - first) // step + 1 != count:
        raise UserError(
            f"array of {count} tasks from {first} to {last}: the task ids are not evenly spaced; "
            f"use --array=0-{count - 1}"
        )
    return (task - first) // step, count


def array_tasks(env: Mapping[str, str] = os.environ) -> int:
    """Return the number of tasks of this process's array job; 1 outside of one."""
    return int(env.get("SLURM_ARRAY_TASK_COUNT", "1"))


def job_record(job_id: str) -> dict[str, str]:
    """Return what ``scontrol show job`` prints: "JobState", "Reason", "Restarts", "TimeLimit", ….

    Raises:
        SlurmError: SLURM does not answer, or does not know the job.
    """
    records = _scontrol("show", "job", job_id, "--oneliner").splitlines()
    return dict(field.split("=", 1) for field in records[0].split() if "=" in field)


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue: its state ("PENDING", "RUNNING", …), its nodes, and why it waits."""

    state: str
    nodes: str
    reason: str


def queued_jobs(ids: Sequence[str]) -> dict[str, QueuedJob] | None:
    """Return those of the jobs ``ids`` ("17", "17_3") that are in the queue; None without SLURM or its answer."""
    if shutil.which("squeue") is None:
        return None
    numbers = ",".join(sorted({job.partition("_")[0] for job in ids}))
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%N|%r", f"--jobs={numbers}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SQUEUE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None  # SLURM forgets ended jobs after some minutes
    jobs = (line.split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3)
    return {number: QueuedJob(state, nodes, reason) for number, state, nodes, reason in jobs}


def requeue() -> bool:
    """Requeue the job of this process, unless it was cancelled; return whether it will start again.

    SLURM ends the processes of a requeued job soon after. It accepts a plain request also for a job that is being
    cancelled, which would then start again, so the request is for running jobs only; whether the job is one is decided
    by slurmctld. A job that is past its time limit does not count as running; it is requeued in a second request.

    Raises:
        UserError: the process belongs to no job.
        SlurmError: SLURM refuses the request.
    """
    this = job()
    if this is None:
        raise UserError("only a SLURM job can be requeued, and this process belongs to none")
    _scontrol("requeue", "Incomplete", this.id)  # SLURM_JOB_ID of an array's first task stands for the whole array
    record = job_record(this.id)
    if int(record["Restarts"]) > this.restarts:
        return True
    if record["Reason"] == "TimeLimit":
        _scontrol("requeue", this.id)
        return True
    return False


def signal_step(name: str) -> None:
    """Send the signal ``name`` ("USR1") to all tasks of this process's job step, as SLURM does before the time limit.

    Raises:
        UserError: the process belongs to no job.
        SlurmError: SLURM refuses the request or does not answer.
    """
    this = job()
    if this is None or not in_step():
        raise UserError("only the tasks of a SLURM job step can be signalled, and this process is none")
    _run_slurm("scancel", f"--signal={name}", f"{this.id}.{os.environ['SLURM_STEP_ID']}")


def signal_tasks(name: str) -> None:
    """Send the signal ``name`` ("TERM") to the tasks of all steps of this process's job, not to its batch script.

    Raises:
        UserError: the process belongs to no job.
        SlurmError: the job does not run any more, or SLURM refuses the request or does not answer.
    """
    this = job()
    if this is None:
        raise UserError("only the tasks of a SLURM job can be signalled, and this process belongs to none")
    state = job_record(this.id)["JobState"]
    if state != "RUNNING":  # of a job that was requeued, scancel would wait and signal the next start
        raise SlurmError(f"job {this.id} is {state}; only a running one can be signalled")
    _run_slurm("scancel", f"--signal={name}", this.id)


def timed_out() -> bool:
    """Return whether SLURM is ending the job of this process because of its time limit.

    Raises:
        SlurmError: SLURM does not answer.
    """
    this = job()
    return this is not None and job_record(this.id)["Reason"] == "TimeLimit"


def _from_launcher(env: Mapping[str, str]) -> Rendezvous:
    missing = [name for name in RENDEZVOUS if name not in env]
    if missing:
        raise UserError(f"RANK is set but not {', '.join(missing)}: set all of {', '.join(RENDEZVOUS)} or none")
    rank, local_rank, world_size, port = (int(env[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"))
    return Rendezvous(rank, local_rank, world_size, env["MASTER_ADDR"], port)


def _from_step(env: Mapping[str, str]) -> Rendezvous:
    """Return the rendezvous of the job step; not of the job, whose script may start several steps on a few nodes."""
    # Jobs may share a node, a job may run several steps, and processes of a requeued job's previous start may still be
    # there: each of them uses another port.
    key = int(env["SLURM_JOB_ID"]) + 1_009 * _restarts(env) + 5_003 * int(env["SLURM_STEP_ID"])
    return Rendezvous(
        rank=int(env["SLURM_PROCID"]),
        local_rank=int(env["SLURM_LOCALID"]),
        world_size=int(env["SLURM_STEP_NUM_TASKS"]),
        address=env.get("MASTER_ADDR") or _meeting_address(env),
        port=_port(env) or FIRST_PORT + key % PORTS,
    )


def _port(env: Mapping[str, str]) -> int | None:
    """Return the port that a job's script has chosen; None if it has not."""
    text = env.get("MASTER_PORT")
    if not text:
        return None
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise UserError(f"MASTER_PORT={text}: must be a port, 1 to 65535")
    return int(text)


def _meeting_address(env: Mapping[str, str]) -> str:
    """Return the address at which the ranks of the job step meet: of a step on one node, its loopback interface."""
    return "127.0.0.1" if env.get("SLURM_STEP_NUM_NODES") == "1" else _first_node(env["SLURM_STEP_NODELIST"])


def _restarts(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_RESTART_COUNT", 0))  # SLURM sets it from the first restart on


def _first_node(nodes: str) -> str:
    """Return an address of the first of ``nodes`` (SLURM's notation, "gpu[03-05,09]")."""
    name = _scontrol("show", "hostnames", nodes).split()[0]
    if _resolves(name):
        return name
    fields = _scontrol("show", "node", name, "--oneliner").split()  # a node's name need not be a host name
    return next(field.removeprefix("NodeAddr=") for field in fields if field.startswith("NodeAddr="))


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    return True


def _scontrol(*arguments: str) -> str:
    return _run_slurm("scontrol", *arguments)


def _run_slurm(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise SlurmError(f"{program}: not found, although SLURM started this process; add it to PATH")
    command = [program, *arguments]
    try:
        return subprocess.run(
            [*_IGNORE_SIGNALS, *command],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",  # of names in another encoding than the locale's
            timeout=SCONTROL_TIMEOUT,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{' '.join(command)}: no answer within {SCONTROL_TIMEOUT} s") from None
