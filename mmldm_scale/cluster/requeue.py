"""A training that fails is queued again, but not for ever: what a job's batch script runs around ``srun``.

``mmldm train … --launch "srun --kill-on-bad-exit=1"`` is the one process of a job that no fault of a rank takes along.
It runs the training and decides afterwards: the ranks may be dead by then, and srun's status is the same for all that
can go wrong. Ranks that end in order leave word of it (:func:`report_exit_status`); whatever else ends them is a
failure, and the job is queued again.

``runs/NAME/starts.jsonl`` holds every start and the checkpoint that it began from. After :data:`LIMIT` starts from the
same one a job stays down, whoever requeues it; to submit the run anew makes another job, which may begin.
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
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent

LIMIT = 3  # starts in a row from one checkpoint
STARTS = "starts.jsonl"
EXIT_STATUS_FILE = "MMLDM_EXIT_STATUS"  # in the environment: the file in which ranks leave word
DOCTOR = "MMLDM_DOCTOR"  # in the environment: "off" begins without an examination
IN_ORDER = (2, 75)  # the user's mistake; saved and stopped: what has to follow, the training itself has asked for


def supervise(command: Sequence[str], run: Path, examination: Sequence[str] = ()) -> int:
    """Run ``command``, a training into ``run``. In a SLURM job that then failed, requeue the job or say why not.

    A job begins with ``examination``, if there is one, and goes on only if that has found no trouble. What it finds in
    a job that was queued again may be another node's: that one is queued once more.

    SIGUSR1, SIGUSR2 and SIGTERM are handed on; after SIGTERM, as of scancel, only the time limit makes it requeue.

    Returns: the status that a rank left word of, else that of ``command``.

    Raises:
        UserError: this job began :data:`LIMIT` times where it would again; there is no such program.
    """
    job = slurm.job()
    if job is None:
        return _Child(command, lambda: None).wait()
    exhausted = _exhausted(run, job)
    if exhausted:
        raise UserError(exhausted)
    _record_start(run, job)
    if examination and os.environ.get(DOCTOR) != "off":
        status = _examine(examination, run, job)
        if status:
            return status
    word = run.absolute() / f"ended-{job.id}-{job.restarts}"
    os.environ[EXIT_STATUS_FILE] = str(word)
    child = _Child(command, lambda: _queue_late(run, job))
    status = child.wait()
    status = _take(word) or status
    if status not in (0, *IN_ORDER) and not child.ended:
        _queue_again(run, job, f"failed (status {status})")
    return status


def report_exit_status(status: int) -> None:
    """Tell :func:`supervise`, if it runs this training, that it ends in order, with ``status``; any rank may."""
    if EXIT_STATUS_FILE in os.environ:
        with contextlib.suppress(OSError):  # unheard, it counts as a failure
            Path(os.environ[EXIT_STATUS_FILE]).write_text(str(status))


def _examine(examination: Sequence[str], run: Path, job: slurm.SlurmJob) -> int:
    """Return the status of ``examination``; if it found trouble, requeue the job or say that it is not begun."""
    child = _Child(examination, lambda: None)
    status = child.wait()
    if status in (0, *IN_ORDER) or child.ended:
        return status
    if job.restarts:
        _queue_again(run, job, "was not begun, because of the trouble above")
    else:
        _say(f"mmldm: {run}: not begun, because of the trouble above; {DOCTOR}=off begins all the same")
    return status


def _queue_late(run: Path, job: slurm.SlurmJob) -> None:
    """Requeue the job that SLURM ends, if it does so for the time limit: the training did not save before it."""
    try:
        late = slurm.timed_out()
    except slurm.SlurmError as error:
        _say(f"mmldm: not queued again: {error}")
        return
    if late:
        _queue_again(run, job, "ran into the time limit")


def _queue_again(run: Path, job: slurm.SlurmJob, how: str) -> None:
    exhausted = _exhausted(run, job)
    if exhausted:
        _say(f"mmldm: {exhausted}")
        return
    _say(f"mmldm: {run}: the training {how}; job {job.id} is queued again")
    try:
        slurm.requeue()
    except slurm.SlurmError as error:  # it has been requeued by SLURM itself, or may not be
        _say(f"mmldm: not queued again: {error}")


def _exhausted(run: Path, job: slurm.SlurmJob) -> str | None:
    """Say that ``job`` began too often from the newest checkpoint of ``run``; None if it did not."""
    samples_seen, last = _newest(run), _starts(run)[-LIMIT:]
    if len(last) < LIMIT or any((s["job"], s["samples_seen"]) != (job.id, samples_seen) for s in last):
        return None
    stacks = sorted(run.glob("hangs/*"))
    see = f"the job's log{f' and {stacks[-1]}' if stacks else ''}"
    return (
        f"{run}: {LIMIT} starts in a row ended at {samples_seen:,} samples without a new checkpoint; not queued "
        f"again; see {see}, and submit it anew once that is mended"
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
        "tasks": int(os.environ.get("SLURM_NTASKS", "1")),
        "samples_seen": _newest(run),
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / STARTS).open("a") as file:
            file.write(json.dumps(start) + "\n")
    except OSError as error:
        raise UserError(f"{run / STARTS}: {error.strerror}; the folder of a run has to be writable") from None


def _newest(run: Path) -> int:
    """Return the samples seen at the newest checkpoint of ``run``, by its name; 0 without one."""
    return max((int(folder.name.removeprefix("step-")) for folder in run.glob("checkpoints/step-*[0-9]")), default=0)


def _take(word: Path) -> int | None:
    """Return the status that a rank left word of; None if none did."""
    try:
        status = int(word.read_text())
        word.unlink()
    except (FileNotFoundError, ValueError):
        return None
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Child:
    """The command below this process; ``at_end`` is called once if SIGTERM comes, which sets ``ended``."""

    def __init__(self, command: Sequence[str], at_end: Callable[[], None]) -> None:
        self.ended, self._at_end = False, at_end
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._hand_on)
        try:
            self._process = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
        except FileNotFoundError as error:
            raise UserError(f"--launch: {error.filename}: no such program") from None

    def wait(self) -> int:
        """Return the exit status; 128 and more for a signal."""
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if self._process:
            self._process.send_signal(number)
        if number == signal.SIGTERM and not self.ended:
            self.ended = True
            self._at_end()
