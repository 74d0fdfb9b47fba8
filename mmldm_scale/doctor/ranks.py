"""The ranks among each other: whether they meet, run the same code, have the same time, and how fast they exchange.

``join()`` comes first; on one process alone there is nothing to look at.
"""

import os
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from mmldm_scale.cluster import slurm
from mmldm_scale.doctor import devices, software
from mmldm_scale.doctor.findings import Finding

ROUNDS = 7  # of comparing clocks
SKEW, TOO_MUCH = 1.0, 30.0  # seconds; a dead job's lock is told by a minute of silence
SLOW = 5.0  # GB/s: what NCCL reaches over TCP, and not over a network made for it
TIMES = 5  # that an all-reduce is measured


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value``; all have to call this."""
        values: list[Any] = [None] * self.size
        if self.size == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values


def join(seconds: float) -> Ranks:
    """Meet the other ranks that SLURM, torchrun or ``--processes`` started, within ``seconds``."""
    place = slurm.find_rendezvous(os.environ)
    if place.world_size > 1:
        slurm.export_rendezvous()
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    return Ranks(place.rank, place.local_rank, place.world_size)


def leave(here: Ranks) -> None:
    """Part from the others."""
    if here.size > 1:
        dist.destroy_process_group()


def host() -> str:
    """Return a name for this machine; on a cluster, its node's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def agreement(ranks: Ranks) -> Iterator[Finding]:
    """Compare versions and code with the first rank's."""
    names = ("torch", "deepspeed", "numpy", "webdataset")
    facts = {name: metadata.version(name) for name in names} | {"code": software.code()}
    everybody = ranks.gather((host(), facts))
    (first, expected), *_ = everybody
    for name, value in expected.items():
        others = sorted({(where, found[name]) for where, found in everybody if found[name] != value})
        for where, found in others:
            text = f"{where} has {name} {found}, {first} has {value}"
            yield Finding("trouble", "agreement", text, "one environment and one checkout for all nodes fit")
    if all(found == expected for _, found in everybody):
        nodes = len({where for where, _ in everybody})
        yield Finding("ok", "agreement", f"{ranks.size} ranks on {nodes} node(s) run the same code, {facts['code']}")


def clocks(ranks: Ranks) -> Iterator[Finding]:
    """Compare the clocks of all ranks, each read right after all have met."""
    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        rounds.append(ranks.gather((host(), _now())))
    skews: dict[str, float] = {}
    for rank in range(ranks.size):
        skew = statistics.median(times[rank][1] - times[0][1] for times in rounds)
        name = rounds[0][rank][0]
        skews[name] = max(skews.get(name, 0.0), skew, key=abs)
    name, skew = max(skews.items(), key=lambda item: abs(item[1]))
    if abs(skew) > SKEW:
        level = "trouble" if abs(skew) > TOO_MUCH else "warning"
        text = f"{name} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {rounds[0][0][0]}"
        yield Finding(level, "clocks", text, "have the nodes' clocks set (NTP)")
    else:
        yield Finding("ok", "clocks", f"within {max(abs(skew), 0.001):.3f} s of one another")


def all_reduce(ranks: Ranks, megabytes: int) -> Iterator[Finding]:
    """Measure the bus bandwidth of an all-reduce over all ranks, and look whether the sum is right."""
    where = devices.device(ranks.local_rank)
    on_gpus = all(ranks.gather(where.type == "cuda"))
    group = None
    if on_gpus:
        torch.cuda.set_device(where)
        group = dist.new_group(backend="nccl", timeout=timedelta(seconds=60))
    numbers = megabytes * 250_000
    vector = torch.empty(numbers, dtype=torch.float32, device=where if on_gpus else "cpu")
    seconds = []
    for _ in range(1 + TIMES):  # the first makes the connections
        vector.fill_(ranks.rank + 1)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector, group=group)
        right = bool((vector == ranks.size * (ranks.size + 1) / 2).all())  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    slowest = max(ranks.gather(min(seconds[1:])))
    bandwidth = 2 * (ranks.size - 1) / ranks.size * 4 * numbers / slowest / 1e9
    backend = "NCCL" if on_gpus else "gloo"
    text = f"{bandwidth:.2g} GB/s bus bandwidth, {backend}, {megabytes} MB over {ranks.size} ranks"
    if not all(ranks.gather(right)):
        yield Finding("trouble", "all-reduce", f"a wrong sum ({backend})", "leave out the node it comes from")
    elif on_gpus and bandwidth < SLOW:
        remedy = "NCCL_DEBUG=INFO says which network it took; NCCL_SOCKET_IFNAME in slurm/prologue.sh names another"
        yield Finding("warning", "all-reduce", text, remedy)
    else:
        yield Finding("ok", "all-reduce", text)


def _now() -> float:
    return time.time()  # a line of its own, so that a test can set the clock wrong
