"""What a process needs to know of SLURM: its place among the others of its job step, and its job.

``export_rendezvous()`` comes before ``deepspeed.init_distributed``, which reads none of SLURM's variables (under plain
``srun`` it would look for MPI and fail): it sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from them.
Where these five are set already, by torchrun for one, they stay. A process that no ``srun`` started, so also one run
directly in a batch script, is a world of one.
"""

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from mmldm_scale.common.errors import UserError

RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Below the ports that Linux hands out for outgoing connections (32768 and up), above most services.
FIRST_PORT, PORTS = 20_000, 12_000


class SlurmError(RuntimeError):
    """SLURM refused a request or did not answer; carries its own words."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of a run meet, and which of them this one is."""

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
    restarts: int  # how often it was requeued and started again


def export_rendezvous() -> Rendezvous:
    """Find this process's place in its run and put it into the environment, where torch and DeepSpeed read it.

    Raises:
        UserError: only some of the five variables are set.
        SlurmError: SLURM does not say where the first node is.
    """
    place = find_rendezvous(os.environ)
    values = (place.rank, place.local_rank, place.world_size, place.address, place.port)
    os.environ.update({name: str(value) for name, value in zip(RENDEZVOUS, values, strict=True)})
    return place


def find_rendezvous(env: Mapping[str, str]) -> Rendezvous:
    """Return the place that ``env`` describes: a launcher's five variables, else SLURM's step, else a world of one.

    Raises: as :func:`export_rendezvous`.
    """
    if "RANK" in env:
        return _from_launcher(env)
    if "SLURM_STEP_ID" in env:
        return _from_step(env)
    return Rendezvous(0, 0, 1, "127.0.0.1", _free_port())


def job(env: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """Return the job that this process runs in; None outside of SLURM."""
    if "SLURM_JOB_ID" not in env:
        return None
    number = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        number = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return SlurmJob(number, env.get("SLURM_JOB_NAME", ""), _restarts(env))


def array_share(env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (index, count): which of how many equal shares of the work falls to this task of an array job.

    Outside of an array the one share is everything: (0, 1).

    Raises:
        UserError: the array's task ids are not evenly spaced, so a task cannot tell which one in line it is.
    """
    if "SLURM_ARRAY_TASK_ID" not in env:
        return 0, 1
    task, first, last, step, count = (
        int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    if (last - first) // step + 1 != count:
        raise UserError(f"array of {count} tasks from {first} to {last}: uneven task ids; --array=0-{count - 1} fits")
    return (task - first) // step, count


def requeue() -> None:
    """Put this process's job back into the queue; SLURM ends the job's processes soon after.

    Raises:
        UserError: the process belongs to no job.
        SlurmError: SLURM refuses, with its reason.
    """
    this = job()
    if this is None:
        raise UserError("only a SLURM job can be requeued, and this process belongs to none")
    _scontrol("requeue", this.id)  # one task's SLURM_JOB_ID is its array's, which would requeue all of them


def timed_out() -> bool:
    """Return whether SLURM is ending this process's job because its time is up.

    Raises:
        SlurmError: SLURM does not say.
    """
    return "Reason=TimeLimit" in _scontrol("show", "job", job().id, "--oneliner").split()


def _from_launcher(env: Mapping[str, str]) -> Rendezvous:
    missing = [name for name in RENDEZVOUS if name not in env]
    if missing:
        raise UserError(f"RANK is set but not {', '.join(missing)}: set all of {', '.join(RENDEZVOUS)} or none")
    rank, local_rank, world_size, port = (int(env[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"))
    return Rendezvous(rank, local_rank, world_size, env["MASTER_ADDR"], port)


def _from_step(env: Mapping[str, str]) -> Rendezvous:
    """Read the variables of the step, not of the job: a script may start several, on a part of its nodes."""
    # Jobs that share a node differ in their id, a job's steps in theirs, and a requeued job must not meet what is
    # left of its predecessor: each gets a port of its own.
    which = int(env["SLURM_JOB_ID"]) + 1_009 * _restarts(env) + 5_003 * int(env["SLURM_STEP_ID"])
    return Rendezvous(
        rank=int(env["SLURM_PROCID"]),
        local_rank=int(env["SLURM_LOCALID"]),
        world_size=int(env["SLURM_STEP_NUM_TASKS"]),
        address=_first_node(env["SLURM_STEP_NODELIST"]),
        port=FIRST_PORT + which % PORTS,
    )


def _restarts(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_RESTART_COUNT", 0))  # SLURM sets it from the first restart on


def _first_node(nodes: str) -> str:
    """Return an address of the first of ``nodes`` (SLURM's notation, "gpu[03-05,09]")."""
    name = _scontrol("show", "hostnames", nodes).split()[0]
    if _resolves(name):
        return name
    facts = _scontrol("show", "node", name, "--oneliner").split()  # a node's name need not be a host's
    return next(fact.removeprefix("NodeAddr=") for fact in facts if fact.startswith("NodeAddr="))


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except FileNotFoundError:
        raise SlurmError("scontrol: not found, although SLURM started this process; add it to PATH") from None
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{' '.join(command)}: no answer within 60 s") from None
