"""The lock of a run's folder: one job at a time; a second one is refused, and the lock of a dead one is taken over.

    with locked(run, world) as lock:
        …
        problem = lock.problem()  # on rank 0, now and then: a suspended job may have lost it

The lock is a lease (:mod:`mmldm_scale.common.leases`), ``runs/NAME/leases/run``, held by rank 0. Whether a holder on
this machine is alive is known at once; the lock of one on another machine is observed for at most a minute.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError, refused_paths
from mmldm_scale.common.leases import Leases, describe
from mmldm_scale.training.engine.distributed import World

NAME = "run"  # of the lease
POLL_INTERVAL = 1.0  # seconds between two reads of another job's lock


class RunLock:
    """The lock of ``run`` as this rank has it: ``leases`` is None on all ranks but rank 0."""

    def __init__(self, run: Path, leases: Leases | None) -> None:
        self._run, self._leases = run, leases

    def problem(self) -> str | None:
        """Return who has taken the lock since this process held it, as it was suspended; None if nobody has."""
        if self._leases is None:
            return None
        try:
            if self._leases.holds(NAME) or self._leases.take(NAME):
                return None
        except (OSError, UserError):
            return None  # the file system fails; whoever writes the run's files reports that
        holder, _ = self._leases.rival(NAME)
        return f"{self._run}: {_describe(holder)} took this run over while this process was suspended; it ends here"


@contextmanager
def locked(run: Path, world: World) -> Iterator[RunLock]:
    """Hold the lock of ``run`` in the block; all ranks call this together.

    Raises:
        UserError: another job holds the lock, or it cannot be written.
    """
    with ExitStack() as stack:
        leases, job = None, slurm.job()
        if world.is_rank0:
            leases = stack.enter_context(Leases(run, job=job.id if job else ""))
        problem = world.broadcast_from_rank0(_take(run, leases) if leases else None)
        if problem:
            raise UserError(problem)
        yield RunLock(run, leases)


def _take(run: Path, leases: Leases) -> str | None:
    """Take the lock; return why that is impossible, or None."""
    try:
        with refused_paths():
            return _wait_for_lock(run, leases)
    except UserError as error:  # returned, since the other ranks wait for an answer
        return str(error)


def _wait_for_lock(run: Path, leases: Leases) -> str | None:
    """Take the lock, after its holder has died if there is one; return who holds it if that process lives, or None."""
    waiting = False
    while not leases.take(NAME):
        holder, is_alive = leases.rival(NAME)
        if is_alive:
            return f"{run}: {_describe(holder)} is training this run; end it first, or set another run="
        if not waiting:
            print(f"{run}: waiting to see whether {_describe(holder)} is still alive", file=sys.stderr, flush=True)
        waiting = True
        time.sleep(POLL_INTERVAL)
    return None


def _describe(holder: dict[str, Any]) -> str:
    process = describe(holder)
    return f"{process} (job {holder['job']})" if holder.get("job") else process
