"""Checks of the node: processors, memory, open files, shared memory, and the SLURM job."""

import math
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import socket_folder
from mmldm_scale.doctor.findings import Finding, Level
from mmldm_scale.training.data.loader import SHARED_MEMORY, shared_bytes

GIB = 2**30
OPEN_FILES = 1024  # files: a reader keeps one open for each tar, and loader workers pass batches through files
NCCL_SHARED = 64 << 20  # bytes of shared memory that NCCL takes for each of several processes on a node
PER_PROCESS, PER_WORKER = 4 * GIB, GIB  # bytes of host memory
SHORTEST_JOB = 600  # seconds; starting and saving take about two minutes


def processors(processes: int, workers: int) -> Iterator[Finding]:
    """Compare the usable processors of this node with ``processes``, each with ``workers`` loader workers."""
    usable = len(os.sched_getaffinity(0))
    allocated = slurm.cpus_per_task()
    usable = min(usable, allocated * processes) if allocated else usable
    needed = processes * (1 + workers)
    text = f"{usable} for {processes} process(es) with {workers} loader workers each"
    if usable < processes:
        remedy = f"use --cpus-per-task={1 + workers}, or at most {usable} process(es) with training.workers=0"
        yield Finding("warning", "processors", text, remedy)
    elif needed > usable:
        fewer = usable // processes - 1
        yield Finding("warning", "processors", text, f"use --cpus-per-task={1 + workers} or training.workers={fewer}")
    else:
        yield Finding("ok", "processors", text)


def memory(processes: int, workers: int) -> Iterator[Finding]:
    """Compare the available memory, or the control group's limit, with the least that processes and workers use."""
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    available, source = int(meminfo["MemAvailable"]) << 10, "available"
    limit = _group_limit()
    if limit is not None and limit < available:
        available, source = limit, "limit of the job"
    needed = processes * (PER_PROCESS + workers * PER_WORKER)
    text = f"{available / GIB:.0f} GiB {source}"
    if available < needed:
        remedy = f"use --mem={needed // GIB}G or fewer training.workers"
        yield Finding("warning", "memory", f"{text} for {processes} process(es)", remedy)
    else:
        yield Finding("ok", "memory", text)


def _group_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the smallest memory limit of this process's control groups, in bytes; None without a limit."""
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
        if controllers not in names:
            continue
        under, name = names[controllers]
        group = root / under / path.lstrip("/")
        for folder in (group, *group.parents):
            text = (folder / name).read_text().strip() if (folder / name).is_file() else ""
            if text.isdecimal() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def open_files() -> Iterator[Finding]:
    """Check the limit on open files."""
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < OPEN_FILES:
        level: Level = "error" if limit < OPEN_FILES // 4 else "warning"
        remedy = f"ulimit -n {OPEN_FILES}"
        remedy += "" if hard_limit >= OPEN_FILES else f"; the administrator has to raise the hard limit, {hard_limit}"
        yield Finding(level, "open files", f"at most {limit}", remedy)
    else:
        yield Finding("ok", "open files", f"at most {limit}" if limit >= 0 else "no limit")


def shared_memory(processes: int, workers: int, micro_batch: int, folder: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Check the free shared memory, through which loader workers pass micro-batches of ``micro_batch`` bytes."""
    free = shutil.disk_usage(folder).free
    loaders = processes * shared_bytes(micro_batch, workers)
    needed = loaders + (processes * NCCL_SHARED if processes > 1 else 0)
    text = f"{free / GIB:.2g} GiB free in {folder}"
    if free < needed:
        without = ", or training.workers=0" if workers else ""
        size = f"{needed / 2**20:,.0f} MiB are needed"
        remedy = f"{size} (in a container: --shm-size={math.ceil(needed / GIB)}g){without}"
        yield Finding("error" if free < loaders else "warning", "shared memory", text, remedy)
    else:
        yield Finding("ok", "shared memory", text)


def temporary_files() -> Iterator[Finding]:
    """Check the folder for temporary files, and whether the paths of sockets in it would be too long."""
    try:
        folder = socket_folder()
    except UserError as problem:
        yield Finding("error", "temporary", str(problem))
        return
    usual = tempfile.gettempdir()
    wanted = os.environ.get("TMPDIR")
    if wanted and os.path.abspath(wanted) != usual:
        text = f"TMPDIR={wanted} cannot be written; {usual} is used"
        yield Finding("warning", "temporary", text, "set another TMPDIR")
    elif folder != usual:
        yield Finding("ok", "temporary", f"files in {usual}, which is too long for sockets: these are in {folder}")
    else:
        yield Finding("ok", "temporary", f"files and sockets in {usual}")


def slurm_job() -> Iterator[Finding]:
    """Check the SLURM job: its tasks and GPUs, its time limit, and whether SLURM requeues it after a node failure."""
    this = slurm.job()
    if this is None:
        return
    try:
        record = slurm.job_record(this.id)
    except slurm.SlurmError as error:
        yield Finding("warning", "SLURM", str(error)[:200])
        return
    yield from check_job(record, slurm.gpus_on_node(), slurm.tasks_on_node(), slurm.array_tasks())


def check_job(record: Mapping[str, str], gpus: int, tasks: int | None, array_tasks: int = 1) -> Iterator[Finding]:
    """Check ``record``, as ``scontrol show job`` prints it, and the numbers of GPUs and of tasks on this node.

    Args:
        array_tasks: number of tasks of the array that the job is one of.
    """
    problems = []
    if record.get("Requeue") == "0":
        problems.append(("SLURM does not requeue it after a node failure", "#SBATCH --requeue"))
    seconds = _seconds(record.get("TimeLimit", "UNLIMITED"))
    if seconds is not None and seconds < SHORTEST_JOB:
        problems.append(
            (f"a time limit of {seconds} s is short for starting and saving", f"--time of at least {SHORTEST_JOB} s")
        )
    if gpus and tasks and gpus != tasks:
        problems.append((f"{tasks} task(s) for {gpus} GPUs on this node", f"--ntasks-per-node={gpus}"))
    for text, remedy in problems:
        yield Finding("warning", "SLURM", text, remedy)
    if not problems:
        job, nodes, limit = (record.get(key) for key in ("JobId", "NumNodes", "TimeLimit"))
        if "ArrayTaskId" in record:
            job = f"{record['ArrayJobId']}_{record['ArrayTaskId']}, one of {array_tasks} of its array"
        yield Finding("ok", "SLURM", f"job {job}, {nodes} node(s), time limit {limit}")


def _seconds(limit: str) -> int | None:
    """Return the seconds of SLURM's "[days-]hours:minutes:seconds"; None without a limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
