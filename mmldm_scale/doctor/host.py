"""The machine below: processors, memory, open files, shared memory, and what SLURM gave the job."""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmldm_scale.doctor.findings import Finding

GIB = 2**30
OPEN_FILES = 1024  # a reader keeps a file open for each tar, and loader workers hand batches over through files
SHARED = 64 << 20  # bytes for each loader worker: it hands four micro-batches over through shared memory
PER_PROCESS, PER_WORKER = 4 * GIB, GIB  # of host memory
SHORTEST = 600  # seconds: a job begins, saves and ends in two minutes


def processors(processes: int, workers: int) -> Iterator[Finding]:
    """Count the processors that this job may use here, for ``processes`` with ``workers`` loader workers each."""
    usable = len(os.sched_getaffinity(0))
    share = int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) * processes or usable
    usable = min(usable, share)
    needed = processes * (1 + workers)
    text = f"{usable} for {processes} process(es) with {workers} loader workers each"
    if needed > usable and workers:
        fits = max(0, usable // processes - 1)
        yield Finding("warning", "processors", text, f"--cpus-per-task={1 + workers} or training.workers={fits} fits")
    else:
        yield Finding("ok", "processors", text)


def memory(processes: int, workers: int) -> Iterator[Finding]:
    """Hold the host's memory, or the control group's limit, against what processes and workers take at least."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    room, what = int(facts["MemAvailable"]) << 10, "available"
    limit = _group_limit()
    if limit is not None and limit < room:
        room, what = limit, "the job's limit"
    needed = processes * (PER_PROCESS + workers * PER_WORKER)
    text = f"{room / GIB:.0f} GiB {what}"
    if room < needed:
        remedy = f"--mem={needed // GIB}G or fewer training.workers"
        yield Finding("warning", "memory", f"{text} for {processes} process(es)", remedy)
    else:
        yield Finding("ok", "memory", text)


def _group_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the limit of the control groups above this process, in bytes; None if there is none."""
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
    """Look at the limit on open files."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < OPEN_FILES:
        level = "trouble" if limit < OPEN_FILES // 4 else "warning"
        remedy = f"ulimit -n {OPEN_FILES} fits" + ("" if most >= OPEN_FILES else ", once the administrator allows it")
        yield Finding(level, "open files", f"at most {limit}", remedy)
    else:
        yield Finding("ok", "open files", f"at most {limit}" if limit >= 0 else "no limit")


def shared_memory(processes: int, workers: int, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Look for room in shared memory, through which loader workers hand over what they load."""
    free = shutil.disk_usage(folder).free
    needed = processes * workers * SHARED
    text = f"{free / GIB:.2g} GiB free in {folder}"
    if free < needed:
        remedy = f"{needed / GIB:.2g} GiB fit (a container: --shm-size), or training.workers=0"
        yield Finding("trouble" if free < needed / 8 else "warning", "shared memory", text, remedy)
    else:
        yield Finding("ok", "shared memory", text)


def slurm_job(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Look at what SLURM gave the job: tasks and GPUs, its time, and whether it comes back after a lost node."""
    if "SLURM_JOB_ID" not in env:
        return
    command = ["scontrol", "show", "job", env["SLURM_JOB_ID"], "--oneliner"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=15)
    if said.returncode:
        yield Finding("warning", "SLURM", f"scontrol does not answer: {said.stderr.strip()[:200]}")
        return
    yield from job_facts(dict(fact.split("=", 1) for fact in said.stdout.split() if "=" in fact), env)


def job_facts(facts: Mapping[str, str], env: Mapping[str, str]) -> Iterator[Finding]:
    """Judge what ``scontrol show job`` says, ``facts``, and the variables of a task, ``env``."""
    problems = []
    if facts.get("Requeue") == "0":
        problems.append(("it does not come back after a lost node", "#SBATCH --requeue"))
    seconds = _seconds(facts.get("TimeLimit", "UNLIMITED"))
    if seconds is not None and seconds < SHORTEST:
        problems.append((f"{seconds} s are hardly enough to begin and to save", f"--time of {SHORTEST} s or more"))
    gpus = int(env.get("SLURM_GPUS_ON_NODE", "0"))
    tasks = int(re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "0"))[0])
    if gpus and tasks and gpus != tasks:
        problems.append((f"{tasks} tasks for {gpus} GPUs of a node", f"--ntasks-per-node={gpus}"))
    for text, remedy in problems:
        yield Finding("warning", "SLURM", text, remedy)
    if not problems:
        yield Finding(
            "ok", "SLURM", f"job {facts.get('JobId')}, {facts.get('NumNodes')} node(s), time {facts.get('TimeLimit')}"
        )


def _seconds(limit: str) -> int | None:
    """Return SLURM's [days-]hours:minutes:seconds in seconds; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
