"""Requeues a training job that failed, a limited number of times: the process that a batch script runs around ``srun``.

``mmldm train … --under "srun --kill-on-bad-exit=1"`` is the one process of the job that no failing rank ends. It runs
the training and decides afterwards whether to requeue the job. srun's exit status is the same for most causes, so a
rank that ends on purpose writes its status to a file (:func:`report_exit_status`). Any other end is a failure.

``runs/NAME/starts.jsonl`` holds a record of each start: the job and the checkpoint it started from. After
:data:`MAX_STARTS` starts of a job from the same checkpoint the job ends, whoever requeues it; a new ``sbatch`` of the
run may start.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mmldm_scale.cluster import slurm
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent

MAX_STARTS = 3  # consecutive starts of a job from one checkpoint
STARTS = "starts.jsonl"
EXIT_STATUS_FILE = "MMLDM_EXIT_STATUS"  # environment variable: the file that a rank writes its exit status to
DOCTOR = "MMLDM_DOCTOR"  # environment variable: "off" skips the doctor
# Exit statuses that are not requeued here: success, the user's mistake, "saved and stopped", after which the training
# itself has requeued the job if it should run again, and Ctrl-C before there is anything to save.
FINAL_STATUSES = (0, 2, 75, 130)


def supervise(command: Sequence[str], run: Path, doctor: Sequence[str] = ()) -> int:
    """Run ``command``, a training into the folder ``run``. In a SLURM job that fails, requeue the job.

    The job starts with the command ``doctor``, if given, and ends if that fails. If the job had been requeued before,
    it is requeued then as well: the error may be one of a node that it did not use before.

    SIGUSR1, SIGUSR2 and SIGTERM are passed on, and SIGINT as SIGTERM, since srun keeps SIGINT to itself. A job that
    receives SIGTERM is requeued only if SLURM ends it because of its time limit. A cancelled job is never requeued.

    Returns: the exit status that a rank reported, else that of ``command``.

    Raises:
        UserError: the job has used its :data:`MAX_STARTS` starts, or the program of ``command`` does not exist.
    """
    job = slurm.job()
    if job is None:
        return _Child(command).wait()
    no_more_starts = _no_more_starts(run, job)
    if no_more_starts:
        raise UserError(no_more_starts)
    _record_start(run, job)
    if doctor and os.environ.get(DOCTOR) != "off":
        status = _run_doctor(doctor, run, job)
        if status:
            return status
    status_file = run.absolute() / f"ended-{job.id}-{job.restarts}"
    os.environ[EXIT_STATUS_FILE] = str(status_file)
    child = _Child(command, on_sigterm=lambda: _requeue_at_time_limit(run, job))
    status = child.wait()
    status = _take_status(status_file) or status
    if status not in FINAL_STATUSES and not child.got_sigterm:
        _requeue(run, job, f"failed (status {status})")
    return status


def report_exit_status(status: int) -> None:
    """Report to :func:`supervise`, if it runs this training, that this rank ends on purpose with ``status``."""
    if EXIT_STATUS_FILE in os.environ:
        with contextlib.suppress(OSError):  # without the report the end counts as a failure
            Path(os.environ[EXIT_STATUS_FILE]).write_text(str(status))


def _run_doctor(doctor: Sequence[str], run: Path, job: slurm.SlurmJob) -> int:
    """Return the exit status of ``doctor``. If it found errors, requeue a job that had been requeued before."""
    child = _Child(doctor)
    status = child.wait()
    if status in FINAL_STATUSES or child.got_sigterm:
        return status
    if job.restarts:
        _requeue(run, job, "was not started because of the errors above")
    else:
        _print(f"mmldm: {run}: not started because of the errors above; {DOCTOR}=off skips this check")
    return status


def _requeue_at_time_limit(run: Path, job: slurm.SlurmJob) -> None:
    """Requeue the job if SLURM ends it because of its time limit: the training did not save in time."""
    try:
        timed_out = slurm.timed_out()
    except slurm.SlurmError as error:
        _print(f"mmldm: job {job.id} is not requeued: {error}")
        return
    if timed_out:
        _requeue(run, job, "reached the time limit")


def _requeue(run: Path, job: slurm.SlurmJob, event: str) -> None:
    """Requeue the job after ``event``, unless it was cancelled or has no more starts, and print what happens."""
    no_more_starts = _no_more_starts(run, job)
    if no_more_starts:
        _print(f"mmldm: {no_more_starts}")
        return
    if not run.is_dir():  # another start would make a new folder and begin at 0
        _print(f"mmldm: {run}: the training {event}, and its folder is gone; job {job.id} is not requeued")
        return
    # Printed before the request, after which SLURM may end this process at any moment.
    _print(f"mmldm: {run}: the training {event}; requeueing job {job.id}")
    try:
        if not slurm.requeue():  # the ranks of a cancelled job may end before SIGTERM reaches this process
            _print(f"mmldm: job {job.id} was cancelled and is not requeued")
    except slurm.SlurmError as error:  # for example, the job was submitted with --no-requeue
        _print(f"mmldm: job {job.id} is not requeued: {error}")


def _no_more_starts(run: Path, job: slurm.SlurmJob) -> str | None:
    """Return a message if ``job`` started :data:`MAX_STARTS` times from the newest checkpoint of ``run``, else None."""
    samples_seen, last = _newest_checkpoint(run), _starts(run)[-MAX_STARTS:]
    if len(last) < MAX_STARTS or any((s["job"], s["samples_seen"]) != (job.id, samples_seen) for s in last):
        return None
    stacks = sorted(run.glob("hangs/*"))
    return (
        f"{run}: {MAX_STARTS} starts in a row ended at {samples_seen:,} samples without a new checkpoint; job {job.id} "
        f"is not requeued; see the job's log{f' and {stacks[-1]}' if stacks else ''}, fix the cause, submit a new job"
    )


def _starts(run: Path) -> list[dict[str, Any]]:
    try:
        lines = (run / STARTS).read_text().splitlines()
        return [{"job": str(s["job"]), "samples_seen": int(s["samples_seen"])} for s in map(json.loads, lines)]
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{run / STARTS}: cannot be read ({error}); remove it") from None


def _record_start(run: Path, job: slurm.SlurmJob) -> None:
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "job": job.id,
        "restarts": job.restarts,
        "tasks": job.tasks,
        "samples_seen": _newest_checkpoint(run),
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / STARTS).open("a") as file:
            file.write(json.dumps(start) + "\n")
    except OSError as error:
        raise UserError(f"{run / STARTS}: {error.strerror}; the run folder must be writable") from None


def _newest_checkpoint(run: Path) -> int:
    """Return the samples seen at the newest checkpoint of ``run``, from its name; 0 without one."""
    return max(find_checkpoints(run), default=0)


def _take_status(file: Path) -> int | None:
    """Return the exit status in ``file`` and remove it; None if no rank reported one."""
    try:
        status = int(file.read_text())
        file.unlink()
    except (FileNotFoundError, ValueError):
        return None
    return status


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Child:
    """The supervised command.

    Attributes:
        got_sigterm: whether this process received SIGTERM while the command ran. ``on_sigterm`` is called then, once.
    """

    def __init__(self, command: Sequence[str], on_sigterm: Callable[[], None] = lambda: None) -> None:
        self.got_sigterm, self._on_sigterm = False, on_sigterm
        self._is_srun = Path(command[0]).name == "srun"
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        try:
            self._process = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
        except FileNotFoundError as error:
            raise UserError(f"--under: {error.filename}: no such program") from None

    def wait(self) -> int:
        """Return the exit status; 128 + the signal's number if a signal ended the command."""
        assert self._process is not None
        status = self._process.wait()
        self._ended = True
        return status if status >= 0 else 128 - status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._ended:
            return
        number = signal.SIGTERM if number == signal.SIGINT else number
        is_first = number == signal.SIGTERM and not self.got_sigterm
        if self._process and not (is_first and self._is_srun and _tell_tasks()):
            self._process.send_signal(number)
        if is_first:
            self.got_sigterm = True
            self._on_sigterm()


def _tell_tasks() -> bool:
    """Send SIGTERM to a running job's tasks; return whether SLURM did it.

    At SIGTERM srun kills them before they save. A job that SLURM ends needs no help: SLURM signals all its processes.
    """
    try:
        slurm.signal_tasks("TERM")
    except (UserError, slurm.SlurmError):
        return False
    return True
