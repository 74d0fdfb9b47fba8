"""The processes of a run: who this one is, what it computes on, and how it exchanges values with the others.

    world = start(timeout=600)
    losses = world.sum([loss])
    stop()

SLURM, torchrun or our launcher describe the process group in the environment; without any the world has one process.
Control messages (stop requests, digests of checkpoint files) use a gloo group of their own, so they never wait for the
GPU. All groups are made before the first step, since the store that this needs may be gone later, with its launcher.
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

from mmldm_scale.cluster import rendezvous, slurm
from mmldm_scale.common.device import gpu_identity, gpu_index, shared_gpu, training_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.training.engine import deepspeed_internals

GRACE = 15.0  # seconds that collectives wait longer than the watchdog, which can name the rank that hangs


@dataclass(frozen=True)
class World:
    """This process among the others of the run; all of them must call each method together."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup  # gloo, on the CPU

    @property
    def is_rank0(self) -> bool:
        """Whether this is the rank that prints and writes for all."""
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
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def start(timeout: float) -> World:
    """Join the run's processes; a collective that waits longer than ``timeout`` + ``GRACE`` seconds fails.

    Raises:
        UserError: the environment does not give this process a rank or a GPU of its own, or DeepSpeed's version is not
            supported.
    """
    deepspeed_internals.check_version()
    place = slurm.export_rendezvous()
    deepspeed.utils.logger.setLevel(logging.ERROR)  # the logger prints what users need
    limit = timedelta(seconds=timeout + GRACE)
    cuda = torch.cuda.is_available()
    if cuda:
        index = gpu_index(place.local_rank, torch.cuda.device_count(), slurm.processes_on_node())
        torch.cuda.set_device(index)
        os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed takes it for the GPU's number
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(
        backend,
        timeout=limit,
        world_size=place.world_size,
        rank=place.rank,
        store=rendezvous.open_store(place, limit),
        # As DeepSpeed would: NCCL connects each group when it is made, not at its first use.
        device_id=torch.device("cuda", torch.cuda.current_device()) if cuda and place.world_size > 1 else None,
    )
    deepspeed_internals.compile_no_operators()
    deepspeed_internals.import_muon_uncompiled()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False)
    world = World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        device=training_device(),
        control=dist.new_group(backend="gloo", timeout=limit),
    )
    shared = shared_gpu(world.gather(gpu_identity(world.device)))
    if shared:
        stop()
        raise UserError(shared)
    return world


def is_lost_contact(error: BaseException) -> bool:
    """Return whether a collective raised ``error`` because another rank is gone or does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def limit_every_group(timeout: float) -> None:
    """Set the time-out of every process group, including DeepSpeed's own, to ``timeout`` + ``GRACE`` seconds.

    The time-out of ``init_distributed`` does not apply to ZeRO's groups, which would wait for a lost rank for gloo's
    default of 30 minutes.
    """
    deepspeed_internals.set_timeout_of_all_groups(timeout + GRACE)


def stop() -> None:
    """Leave the process group, and wait until gloo's threads are idle.

    A gloo thread releases a collective's tensor after the collective has returned, for which it needs Python's
    interpreter. If the interpreter is shutting down by then, the process is aborted.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.01)  # seconds; releases the interpreter, which gloo's threads may wait for
        while _gloo_is_busy():
            time.sleep(0.01)


def _gloo_is_busy() -> bool:
    """Return whether a thread of gloo is running or ready to run."""
    for thread in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, state = thread.read_text().partition(") ")
        except OSError:
            continue  # the thread has ended
        if name.endswith("(pt_gloo_runloop") and state.startswith("R"):
            return True
    return False
