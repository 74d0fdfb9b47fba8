"""Starts one command of ``shard.py`` as several processes that share its output: on this node, or as SLURM jobs.

``launch(command, "local", 4, options)`` starts four processes of ``shard.py`` + ``command``; with "slurm" they are the
jobs of an array. Each makes what no other is making (:mod:`mmldm_scale.common.leases`) and ends when the whole output
is finished, so any of them may be killed. What they print is merged
(:mod:`.launching.merged_output`).
"""

import argparse
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Literal

from mmldm_scale.cluster.submit import JobRequest, Jobs, Outcome, read_request, submit
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent

from .. import PROGRAM
from .merged_output import MergedOutput
from .process_pool import default_workers
from .progress import FOLDER

Launcher = Literal["local", "slurm"]
PACKAGE = Path(__file__).resolve().parents[1]
PROLOGUE = PACKAGE.parent / "slurm" / "prologue.sh"  # of a clone; a wheel has none
ENCODING = ("latents", "all")  # commands that use a GPU
STOP_SECONDS = 10.0  # from asking a process to stop until it is killed
POLLS = (0.5, 10.0)  # seconds between two queries of SLURM: at first, and at most


@dataclass(frozen=True)
class Options:
    """How to launch.

    Attributes:
        output: of the command; SLURM jobs leave their logs beside it, in ``OUTPUT-jobs``.
        slurm: "key=value" and YAML files for :class:`~mmldm_scale.cluster.submit.JobRequest`.
        wait: follow SLURM jobs until they end.
    """

    output: Path
    slurm: list[str] = field(default_factory=list)
    wait: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the launcher's flags to the parser of a command."""
    group = parser.add_argument_group("several processes that share one output")
    group.add_argument("--launcher", choices=("local", "slurm"), help="start processes on this node, or SLURM jobs")
    group.add_argument("--jobs", type=int, metavar="N", help="number of processes or SLURM jobs that share the output")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, account, qos, constraint, hours, gpus, cpus, memory_gb, requeues; or a YAML file of them",
    )
    group.add_argument("--no-wait", action="store_true", help="return once the SLURM jobs are submitted")


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments``, which shard.py has parsed without an error, without those of the launcher."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return parser.parse_known_args(arguments)[1]


def launch(command: Sequence[str], launcher: Launcher, jobs: int | None, options: Options) -> int:
    """Run ``shard.py`` with the arguments ``command`` as ``jobs`` processes; return the exit status.

    0: the output is finished, also if some processes were killed. The status of the first process that failed; the
    others are stopped. 128 + signal: all were killed. Without ``wait``: 0 once the SLURM jobs are queued.

    Raises:
        UserError: ``jobs`` or the request to SLURM cannot work.
    """
    if jobs is None or jobs < 1:
        raise UserError(f"--jobs {'not given' if jobs is None else jobs}: must be at least 1 process")
    if launcher == "local":
        return _run_here(command, jobs)
    return _run_on_cluster(command, jobs, options)


def _shard(command: Sequence[str], workers: int) -> list[str]:
    """Return the whole command line; each process decodes with ``workers`` others unless ``command`` says how many."""
    name, *rest = command
    has_workers = any(text.startswith("--work") for text in rest)
    return [
        sys.executable,
        str(PACKAGE / "shard.py"),
        name,
        *([] if has_workers else ["--workers", f"{workers}"]),
        *rest,
    ]


# --- on this node ----------------------------------------------------------------------------------------------------


@dataclass
class _Process:
    """One of the processes: its number from 0, what it writes to standard output, and a pipe of its standard error."""

    number: int
    process: subprocess.Popen[bytes]
    output: BinaryIO
    errors: IO[bytes]
    ended: bool = False


def _run_here(command: Sequence[str], count: int) -> int:
    processes: list[_Process] = []
    with contextlib.ExitStack() as stack, _terminated():
        reports = stack.enter_context(tempfile.TemporaryDirectory())
        merged = MergedOutput(Path(reports))
        stack.callback(merged.close)
        stack.callback(_stop, processes)
        cores, gpus = max(1, default_workers() // count), _gpus() if command[0] in ENCODING else []
        for number in range(count):
            output = stack.enter_context(tempfile.TemporaryFile())
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            env = {"OMP_NUM_THREADS": str(cores), **os.environ, FOLDER: reports, **gpu}
            processes.append(_start(number, _shard(command, cores), env, output))
        return _watch(processes, merged)


def _start(number: int, command: Sequence[str], env: dict[str, str], output: BinaryIO) -> _Process:
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C is passed on by _stop, once
        preexec_fn=_prepare_child,
    )
    assert process.stderr is not None  # a pipe
    os.set_blocking(process.stderr.fileno(), False)
    return _Process(number, process, output, process.stderr)


def _prepare_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and hand that on
    die_with_parent(signal.SIGTERM)


def _gpus() -> list[str]:
    """Return the names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that we may use."""
    import torch  # takes seconds, which other commands need not wait

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:count]
    return visible if len(visible) == count and all(visible) else list(map(str, range(count)))


def _watch(processes: list[_Process], merged: MergedOutput) -> int:
    """Print what the processes write until all have ended or one has failed; return the exit status."""
    with selectors.DefaultSelector() as selector:
        for member in processes:
            selector.register(member.errors, selectors.EVENT_READ, member)
        while running := [member for member in processes if not member.ended]:
            for key, _ in selector.select(0.2):
                if not _pass_on(key.data, merged):
                    selector.unregister(key.fileobj)
            merged.show_progress()
            for member in running:
                if member.process.poll() is None:
                    continue
                member.ended = True
                _pass_on(member, merged)
                merged.end(member.number)
                status = member.process.returncode
                if status > 0:
                    return status
                if status < 0:
                    _report_killed(merged, f"process {member.number + 1} of {len(processes)}", status)
    return _summarise([(member.process.returncode, _written(member)) for member in processes], merged)


def _pass_on(member: _Process, merged: MergedOutput) -> bool:
    """Print what the process has written to standard error; return False at its end."""
    while True:
        try:
            data = os.read(member.errors.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        merged.receive(member.number, data)


def _written(member: _Process) -> str:
    member.output.seek(0)
    return member.output.read().decode(errors="replace")


def _stop(processes: list[_Process]) -> None:
    """Interrupt the processes that still run; kill those that do not stop within STOP_SECONDS."""
    running = [member.process for member in processes if member.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Raise SystemExit in the block when SIGTERM comes, so that the processes are stopped."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- SLURM -----------------------------------------------------------------------------------------------------------


def _run_on_cluster(command: Sequence[str], count: int, options: Options) -> int:
    request = read_request(JobRequest, options.slurm)
    folder = options.output.with_name(f"{options.output.name}-jobs").resolve()
    setup = [f"source '{PROLOGUE}'"] if PROLOGUE.exists() else []
    with contextlib.ExitStack() as stack:
        reports = None
        if options.wait:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix="progress-", dir=folder, ignore_cleanup_errors=True)
            reports = Path(stack.enter_context(temporary))
            setup.append(f"export {FOLDER}={shlex.quote(str(reports))}")
        submitted = submit(_shard(command, request.cpus), folder, count, command[0], request, setup)
        print(f"job {submitted.id}: {count} × {PROGRAM} {command[0]}; logs in {folder}", flush=True)
        return 0 if reports is None else _follow(submitted, MergedOutput(reports))


def _follow(jobs: Jobs, merged: MergedOutput) -> int:
    """Print what the jobs write until all have ended or one has failed; return the exit status."""
    try:
        return _follow_logs(jobs, merged)
    except KeyboardInterrupt:
        merged.print_line(f"the jobs continue; `scancel {jobs.id}` ends them")
        raise
    finally:
        merged.close()


def _follow_logs(jobs: Jobs, merged: MergedOutput) -> int:
    count = len(jobs.jobs)
    read = [0] * count  # bytes of each log
    missed = [0] * count  # queries at which SLURM did not know the job any more and it had left no outcome
    ended: dict[int, Outcome] = {}
    began = time.monotonic()
    while True:
        states = jobs.states()  # before the outcomes: a job that has ended left its outcome first
        for number in (number for number in range(count) if number not in ended):
            outcome = jobs.outcome(number)
            read[number] += _pass_on_log(jobs.log(number), read[number], number, merged)
            missed[number] += states is not None and number not in states
            if outcome is None and missed[number] < 3:  # a shared disk may show the outcome a little later
                continue
            ended[number] = outcome or Outcome(-signal.SIGKILL)
            merged.end(number)
            if ended[number].status > 0:
                return _give_up(jobs, number, ended[number], merged)
            if ended[number].status < 0:
                _report_killed(merged, f"job {jobs.id}_{number}", ended[number].status)
        merged.show_progress()
        if len(ended) == count:
            return _summarise([(ended[number].status, ended[number].output) for number in range(count)], merged)
        time.sleep(min(POLLS[1], POLLS[0] + (time.monotonic() - began) / 20))


def _give_up(jobs: Jobs, number: int, outcome: Outcome, merged: MergedOutput) -> int:
    """Cancel the other jobs because job ``number`` failed; return its status."""
    jobs.cancel()
    if outcome.problem:
        merged.print_line(outcome.problem)
    merged.print_line(f"job {jobs.id}_{number} failed, and the others are cancelled; its log is {jobs.log(number)}")
    return outcome.status


def _pass_on_log(log: Path, position: int, number: int, merged: MergedOutput) -> int:
    """Print the log from ``position`` (bytes) on; return how many bytes that was."""
    try:
        with log.open("rb") as stream:
            stream.seek(position)
            data = stream.read()
    except FileNotFoundError:  # the job has not begun
        return 0
    merged.receive(number, data)
    return len(data)


# --- both ------------------------------------------------------------------------------------------------------------


def _report_killed(merged: MergedOutput, who: str, status: int) -> None:
    merged.print_line(
        f"{PROGRAM}: {who} was killed ({signal.Signals(-status).name}); the others make what it had begun"
    )


def _summarise(endings: list[tuple[int, str]], merged: MergedOutput) -> int:
    """Print the summary of one process that succeeded and return 0; else say that all were killed."""
    merged.close()
    for status, output in endings:
        if status == 0:
            print(output, end="", flush=True)
            return 0
    merged.print_line(f"{PROGRAM}: all processes were killed; run the same command again to resume")
    return 128 - endings[-1][0]
