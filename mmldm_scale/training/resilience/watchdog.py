"""The watchdog: when a run hangs, it names the rank that hangs, writes the stacks of all ranks, and ends the run.

    with Watchdog(run, world, limit=600) as watchdog:
        watchdog.heartbeat("data", samples_seen)  # the main thread begins a phase
        …

All ranks take every step together, so one rank that hangs soon stops all of them. A thread of each rank therefore only
checks the heartbeats of its own main thread. If there is none for ``limit`` seconds, each rank writes its progress and
the stacks of its threads and loader workers to ``runs/NAME/hangs/TIME/``. One rank prints a diagnosis in one line, and
all exit with :data:`EXIT_HUNG`. A rank without a report is frozen; the ranks of its machine kill it. If all have
reported, the others wait for the rank with the fewest heartbeats and collectives.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

from mmldm_scale.cluster import requeue
from mmldm_scale.common.processes import identity
from mmldm_scale.training.engine.deepspeed_internals import collectives_begun
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.resilience.signals import WRITE_STACKS

HANGS, DIAGNOSIS = "hangs", "diagnosis.txt"
EXIT_HUNG = 70  # EX_SOFTWARE of sysexits.h
CHECK_INTERVAL = 1.0  # seconds between two checks of the heartbeat
REPORT_WAIT = 2.0  # seconds that the other ranks get to write their reports
DIAGNOSIS_WAIT = 1.5  # seconds that one rank gets to write the diagnosis, before the others exit and end the job
EXIT_DEADLINE = 20.0  # seconds until a rank exits without a report; writing it may hang, too
STACKS_WAIT, STACKS_POLLS = 0.02, 15  # seconds between two reads of a loader worker's stacks, and their number
NAMED_RANKS = 8  # ranks that a diagnosis lists
SYMPTOMS = {"data": "waits for its data", "step": "hangs in a step", "saving": "hangs while saving"}  # by phase


@dataclass(frozen=True)
class RankReport:
    """Progress of a rank, as written in the first line of its file."""

    rank: int
    pid: int
    host: str
    phase: str
    samples_seen: int
    marks: int  # heartbeats so far
    collectives: int  # begun so far
    seconds: float  # since the last heartbeat

    @property
    def progress(self) -> tuple[int, int]:
        """Heartbeats and collectives, which all ranks count alike; the rank with the lowest is behind the others."""
        return self.marks, self.collectives


class Watchdog:
    """Watches this rank's main thread inside the ``with`` block; all ranks make one together.

    Time in which the whole process was suspended does not count.

    Args:
        limit: seconds without a heartbeat after which the run is ended.

    Attributes:
        worker_stacks: the file to pass to :func:`mmldm_scale.training.resilience.signals.prepare_worker`.
    """

    def __init__(self, run: Path, world: World, limit: float) -> None:
        self._folder = run / HANGS / world.broadcast_from_rank0(time.strftime("%Y-%m-%dT%H-%M-%S"))
        self._world, self._limit = world, limit
        self._rank_info: list[dict[str, Any]] = world.gather(identity(os.getpid()))
        self._mark = ("starting", 0, 0)
        self.worker_stacks: BinaryIO = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 (loader workers inherit it)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self, phase: str, samples_seen: int) -> None:
        """Record that the main thread begins ``phase``; all ranks pass the same phases in the same order."""
        self._mark = (phase, samples_seen, self._mark[2] + 1)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        """Check the heartbeat at intervals; end the run after ``limit`` seconds, or when another rank has reported."""
        mark, waited, last = self._mark, 0.0, time.monotonic()
        while not self._end.wait(CHECK_INTERVAL):
            now = time.monotonic()
            if self._mark is mark:
                waited += min(now - last, 2 * CHECK_INTERVAL)
            else:
                mark, waited = self._mark, 0.0
            last = now
            is_alarmed = waited > min(5 * CHECK_INTERVAL, self._limit / 2) and self._folder.exists()
            if waited >= self._limit or is_alarmed:
                faulthandler.dump_traceback_later(EXIT_DEADLINE, exit=True)
                self._end_all(mark, waited)

    def _end_all(self, mark: tuple[str, int, int], waited: float) -> None:
        """Write this rank's report, have one rank write the diagnosis, kill frozen ranks of this machine, and exit."""
        me, folder = self._rank_info[self._world.rank], self._folder
        phase, samples_seen, marks = mark
        rank, collectives = self._world.rank, collectives_begun(self._world.size)
        self._write(RankReport(rank, me["pid"], me["host"], phase, samples_seen, marks, collectives, waited))
        time.sleep(REPORT_WAIT)
        if self._claim_diagnosis():
            line = diagnosis(read_reports(folder), self._rank_info)
            print(f"mmldm: {line}; stacks: {folder}", file=sys.stderr, flush=True)
            requeue.report_exit_status(EXIT_HUNG)
            (folder / DIAGNOSIS).write_text(line + "\n")
        deadline = time.monotonic() + DIAGNOSIS_WAIT
        while not _is_written(folder / DIAGNOSIS) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._kill_frozen()
        os._exit(EXIT_HUNG)

    def _claim_diagnosis(self) -> bool:
        """Return whether this rank writes the diagnosis: the first to create the file does."""
        try:
            (self._folder / DIAGNOSIS).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _write(self, report: RankReport) -> None:
        """Write ``report`` with the stacks of this process and its loader workers; whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = _report_file(self._folder, report.rank)
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb", buffering=0) as stream:
            stream.write(json.dumps(asdict(report)).encode() + b"\n\n")
            faulthandler.dump_traceback(stream, all_threads=True)
            for worker in multiprocessing.active_children():
                stream.write(f"\nloader worker {worker.pid}:\n".encode() + self._stacks_of(worker))
        temporary.rename(file)

    def _stacks_of(self, worker: BaseProcess) -> bytes:
        """Have the loader ``worker`` write its stacks, and return them."""
        begin = previous_size = self.worker_stacks.seek(0, os.SEEK_END)
        with suppress(ProcessLookupError):
            if worker.pid is not None:
                os.kill(worker.pid, WRITE_STACKS)
        for _ in range(STACKS_POLLS):
            time.sleep(STACKS_WAIT)
            size = self.worker_stacks.seek(0, os.SEEK_END)
            if begin < previous_size == size:
                break
            previous_size = size
        self.worker_stacks.seek(begin)
        return self.worker_stacks.read() or b"no answer\n"

    def _kill_frozen(self) -> None:
        """Kill the ranks of this machine that wrote no report, since the launcher waits for them."""
        me = self._rank_info[self._world.rank]
        for rank, other in enumerate(self._rank_info):
            is_on_this_machine = all(other[key] == me[key] for key in ("host", "boot", "processes"))
            if is_on_this_machine and not _report_file(self._folder, rank).exists() and identity(other["pid"]) == other:
                with suppress(ProcessLookupError):
                    os.kill(other["pid"], signal.SIGKILL)


def diagnosis(reports: dict[int, RankReport], rank_info: list[dict[str, Any]]) -> str:
    """Return in one line which ranks hang, and where; ``reports`` may lack ranks, ``rank_info`` has all of them."""
    silent = [rank for rank in range(len(rank_info)) if rank not in reports]
    waiting = max(reports.values(), key=lambda report: report.progress)
    if silent:
        names = _names(silent, rank_info)
        verb = "show" if len(silent) > 1 else "shows"
        return f"{names} {verb} no sign of life since {waiting.seconds:.0f} s at {waiting.samples_seen:,} samples"
    last = min(reports.values(), key=lambda report: report.progress)
    behind = [rank for rank, report in sorted(reports.items()) if report.progress == last.progress]
    symptom = SYMPTOMS.get(last.phase, f"hangs in its {last.phase}")
    if len(behind) > 1:
        symptom = f"like {len(behind) - 1} other{'s' * (len(behind) > 2)} {symptom}"
    return f"{_names(behind[:1], rank_info)} {symptom} since {last.seconds:.0f} s at {last.samples_seen:,} samples"


def read_reports(folder: Path) -> dict[int, RankReport]:
    """Return the reports in ``folder`` by rank."""
    _refresh(folder)
    reports = (RankReport(**json.loads(file.open().readline())) for file in folder.glob("rank-*.txt"))
    return {report.rank: report for report in reports}


def _names(ranks: list[int], rank_info: list[dict[str, Any]]) -> str:
    listed = [f"{rank} (pid {rank_info[rank]['pid']} on {rank_info[rank]['host']})" for rank in ranks[:NAMED_RANKS]]
    more = [f"{len(ranks) - NAMED_RANKS} more"] if len(ranks) > NAMED_RANKS else []
    return f"rank{'s' * (len(ranks) > 1)} {', '.join([*listed, *more])}"


def _refresh(folder: Path) -> None:
    """Change ``folder``, so that an NFS client asks the server for its present content."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _is_written(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _report_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"
