"""The processes of a run: who this one is, what it computes on, and how it agrees with the others.

``start()`` joins the process group that SLURM, torchrun or nobody (a world of one) describes. Control messages (stop
flags, digests of checkpoint files) go over a gloo group of their own, so they never wait for the GPU.
"""

import logging
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from mmldm_scale.cluster import slurm
from mmldm_scale.common.device import training_device
from mmldm_scale.training.engine import deepspeed_internals

GRACE = 15.0  # seconds by which collectives time out later than the watchdog, which can name the rank that hangs


@dataclass(frozen=True)
class World:
    """This process among the others of the run."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup  # gloo, on the CPU

    @property
    def is_rank0(self) -> bool:
        """Whether this is the rank that speaks and writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every process."""
        dist.barrier(self.control)

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any process."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        """Return the element-wise sums over all processes, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value`` by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast_from_rank0(self, value: Any) -> Any:
        """Return the first rank's ``value`` on every process."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def start(timeout: float) -> World:
    """Join the run's processes; a collective that waits longer than ``timeout`` + ``GRACE`` seconds fails.

    Raises:
        UserError: the environment describes no place in the run, or DeepSpeed's version is not supported.
    """
    deepspeed_internals.check_version()
    slurm.export_rendezvous()
    deepspeed.utils.logger.setLevel(logging.ERROR)  # rank 0 prints what users need
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = timedelta(seconds=timeout + GRACE)
    backend = "nccl" if cuda else "gloo"
    deepspeed_internals.compile_no_operators()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False)
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        device=training_device(),
        control=dist.new_group(backend="gloo", timeout=limit),
    )


def limit_every_group(timeout: float) -> None:
    """Give ``timeout`` + ``GRACE`` seconds to every process group, those that DeepSpeed made for itself included.

    The time-out of ``init_distributed`` does not reach ZeRO's own groups, which would wait for a lost rank for gloo's
    default of half an hour.
    """
    deepspeed_internals.set_timeout_of_all_groups(timeout + GRACE)


def stop() -> None:
    """Leave the process group, and wait until its threads have come to rest.

    A thread of gloo's lets go of a tensor after the collective has returned, and waits for Python's interpreter to do
    so. Were that ending by then, the process would be aborted at its very end.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.01)  # without the interpreter, which others may wait for
        while _gloo_runs():
            time.sleep(0.01)


def _gloo_runs() -> bool:
    """Return whether a thread of gloo's is running, or is to."""
    for thread in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, facts = thread.read_text().partition(") ")
        except OSError:
            continue  # it ended just now
        if name.endswith("(pt_gloo_runloop") and facts.startswith("R"):
            return True
    return False
