"""Checks among the ranks: whether they join, run the same code, agree on the time, and how fast they communicate.

Call ``join()`` first. The checks need at least two ranks.
"""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from mmldm_scale.cluster import rendezvous, slurm
from mmldm_scale.common.device import gpu_identity, shared_gpu
from mmldm_scale.doctor import devices, software
from mmldm_scale.doctor.findings import Finding, Level

ROUNDS = 7  # comparisons of the clocks, of which the median counts
SKEW_WARNING, SKEW_ERROR = 1.0, 30.0  # seconds; a lock without a renewal for a minute counts as a dead job's
SLOW = 5.0  # GB/s of bus bandwidth, which NCCL reaches over TCP; a network for clusters is faster
MEASUREMENTS = 5  # of an all-reduce, of which the fastest counts


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks."""

    rank: int
    local_rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each rank; all ranks have to call this."""
        values: list[Any] = [None] * self.size
        if self.size == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values


def join(seconds: float) -> Ranks:
    """Join the ranks that SLURM, torchrun or ``--processes`` started, within ``seconds``."""
    place = slurm.find_rendezvous(os.environ)
    if place.world_size > 1:
        limit = timedelta(seconds=seconds)
        store = rendezvous.open_store(place, limit)
        dist.init_process_group("gloo", timeout=limit, world_size=place.world_size, rank=place.rank, store=store)
    return Ranks(place.rank, place.local_rank, place.world_size)


def leave(here: Ranks) -> None:
    """Leave the process group."""
    if here.size > 1:
        dist.destroy_process_group()


def agreement(ranks: Ranks) -> Iterator[Finding]:
    """Compare versions and code of all ranks with those of rank 0."""
    names = ("torch", "deepspeed", "numpy", "webdataset")
    versions = {name: metadata.version(name) for name in names} | {"code": software.code()}
    by_rank = ranks.gather((slurm.node_name(), versions))
    (first_node, expected), *_ = by_rank
    for name, value in expected.items():
        differing = sorted({(node, actual[name]) for node, actual in by_rank if actual[name] != value})
        for node, version in differing:
            text = f"{node} has {name} {version}, {first_node} has {value}"
            yield Finding("error", "agreement", text, "use one environment and one checkout on all nodes")
    if all(actual == expected for _, actual in by_rank):
        nodes = len({node for node, _ in by_rank})
        yield Finding("ok", "agreement", f"{ranks.size} ranks on {nodes} node(s) run the same code, {versions['code']}")


def separate_gpus(ranks: Ranks) -> Iterator[Finding]:
    """Check that no two ranks have the same GPU."""
    device = devices.device(ranks.local_rank)
    shared = shared_gpu(ranks.gather(gpu_identity(device)))
    if shared:
        yield Finding("error", "GPU", shared)


def clocks(ranks: Ranks) -> Iterator[Finding]:
    """Compare the clocks of all ranks, read right after a barrier."""
    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        rounds.append(ranks.gather((slurm.node_name(), _now())))
    skews: dict[str, float] = {}
    for rank in range(ranks.size):
        skew = statistics.median(times[rank][1] - times[0][1] for times in rounds)
        name = rounds[0][rank][0]
        skews[name] = max(skews.get(name, 0.0), skew, key=abs)
    name, skew = max(skews.items(), key=lambda item: abs(item[1]))
    if abs(skew) > SKEW_WARNING:
        level: Level = "error" if abs(skew) > SKEW_ERROR else "warning"
        text = f"{name} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {rounds[0][0][0]}"
        yield Finding(level, "clocks", text, "synchronise the clocks of the nodes (NTP)")
    else:
        yield Finding("ok", "clocks", f"within {max(abs(skew), 0.001):.3f} s of one another")


def all_reduce(ranks: Ranks, megabytes: int) -> Iterator[Finding]:
    """Measure the bus bandwidth of an all-reduce of ``megabytes`` over all ranks, and check its sum."""
    device = devices.device(ranks.local_rank)
    on_gpus = all(ranks.gather(device.type == "cuda"))
    group = None
    if on_gpus:
        torch.cuda.set_device(device)
        group = dist.new_group(backend="nccl", timeout=timedelta(seconds=60))
    numbers = megabytes * 250_000
    vector = torch.empty(numbers, dtype=torch.float32, device=device if on_gpus else "cpu")
    seconds = []
    for _ in range(1 + MEASUREMENTS):  # the first opens the connections
        vector.fill_(ranks.rank + 1)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector, group=group)
        correct = bool((vector == ranks.size * (ranks.size + 1) / 2).all())  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    slowest = max(ranks.gather(min(seconds[1:])))
    bandwidth = 2 * (ranks.size - 1) / ranks.size * 4 * numbers / slowest / 1e9
    backend = "NCCL" if on_gpus else "gloo"
    text = f"{bandwidth:.2g} GB/s bus bandwidth, {backend}, {megabytes} MB over {ranks.size} ranks"
    if not all(ranks.gather(correct)):
        yield Finding("error", "all-reduce", f"wrong sum ({backend})", "exclude the faulty node (--exclude)")
    elif on_gpus and bandwidth < SLOW:
        remedy = "NCCL_DEBUG=INFO prints the network; set NCCL_SOCKET_IFNAME in slurm/prologue.sh to use another"
        yield Finding("warning", "all-reduce", text, remedy)
    else:
        yield Finding("ok", "all-reduce", text)


def _now() -> float:
    return time.time()  # a function of its own, which a test replaces
