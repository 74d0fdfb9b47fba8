"""One job at a time in a run's folder: a second one is refused, and what a dead one left is taken over.

The lock is a lease (:mod:`mmldm_scale.common.leases`), ``runs/NAME/leases/run``, of the run's first process. Where the
holder is on this machine, whether it lives is seen at once; elsewhere the lock is watched, for a minute at most.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.training.engine.distributed import World

NAME = "run"
POLL = 1.0  # seconds between two looks at another's lock


@contextmanager
def locked(run: Path, world: World) -> Iterator[None]:
    """Hold ``run`` in the block; all ranks call this together.

    Raises:
        UserError: another job holds it, or its lock cannot be written.
    """
    with ExitStack() as stack:
        problem = world.broadcast_from_rank0(_take(run, stack) if world.is_rank0 else None)
        if problem:
            raise UserError(problem)
        yield


def _take(run: Path, stack: ExitStack) -> str | None:
    job = slurm.job()
    leases = stack.enter_context(Leases(run, job=job.id if job else ""))
    waiting = False
    try:
        while not leases.take(NAME):
            holder, lives = leases.rival(NAME)
            if lives:
                return f"{run}: {_described(holder)} is at work on this run; end that one first, or give another run="
            if not waiting:
                print(f"{run}: seeing whether {_described(holder)} still lives", file=sys.stderr, flush=True)
            waiting = True
            time.sleep(POLL)
    except UserError as error:
        return str(error)
    return None


def _described(holder: dict[str, Any]) -> str:
    process = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return f"{process} (job {holder['job']})" if holder.get("job") else process
