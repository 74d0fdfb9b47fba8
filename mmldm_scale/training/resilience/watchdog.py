"""Finds the rank that hangs, writes everybody's stacks, and ends the run.

    with Watchdog(run, world, limit=600) as watchdog:
        watchdog.heartbeat("data", samples_seen)  # the main thread says what it comes to
        …

Ranks take every step together, so one that hangs soon stops them all, and while all goes well nobody has to look after
another: a thread of each rank only sees whether its own main thread moves on. Where it has not for ``limit`` seconds,
each rank writes where it is and the stacks of its threads and loader workers into ``runs/NAME/hangs/TIME/``, one says
in a line which rank it is, and all end with :data:`EXIT_HUNG`. Who is missing there is frozen, and killed by the ranks
of its own machine. Who came less far than the others, by the marks of its main thread and the collectives it took part
in, is the one they wait for.
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
from pathlib import Path
from typing import Any, BinaryIO

from mmldm_scale.cluster import requeue
from mmldm_scale.common.processes import identity
from mmldm_scale.training.engine.deepspeed_internals import collectives_begun
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.resilience.signals import WRITE_STACKS

HANGS, DIAGNOSIS = "hangs", "diagnosis.txt"
EXIT_HUNG = 70  # EX_SOFTWARE
TICK = 1.0  # seconds between two looks
SETTLE = 2.0  # that the others get for their reports
HEARD = 1.5  # that the one that speaks gets before the others end, and with them the job
LAST_RESORT = 20.0  # after which a rank ends without a word: the folder of the run may be what hangs
DOING = {"data": "waits for its data", "step": "hangs in a step", "saving": "hangs while saving"}


@dataclass(frozen=True)
class RankReport:
    """How far a rank is; the first line of its file. One is behind another where (marks, collectives) is less."""

    rank: int
    pid: int
    host: str
    phase: str
    samples_seen: int
    marks: int
    collectives: int
    seconds: float  # since the last mark

    @property
    def reached(self) -> tuple[int, int]:
        """What grows alike on all ranks."""
        return self.marks, self.collectives


class Watchdog:
    """Watches over this rank's main thread in the ``with`` block; all ranks make one together.

    Time in which the whole process stood still does not count: a job may be suspended.

    Attributes:
        worker_stacks: the file for :func:`mmldm_scale.training.resilience.signals.prepare_worker`.
    """

    def __init__(self, run: Path, world: World, limit: float) -> None:
        self._folder = run / HANGS / world.broadcast_from_rank0(time.strftime("%Y-%m-%dT%H-%M-%S"))
        self._world, self._limit = world, limit
        self._rank_info: list[dict[str, Any]] = world.gather(identity(os.getpid()))
        self._mark = ("starting", 0, 0)
        self.worker_stacks: BinaryIO = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 (they inherit it)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self, phase: str, samples_seen: int) -> None:
        """Say that the main thread comes to ``phase``; all ranks pass the same phases in the same order."""
        self._mark = (phase, samples_seen, self._mark[2] + 1)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        mark, waited, last = self._mark, 0.0, time.monotonic()
        while not self._end.wait(TICK):
            now = time.monotonic()
            if self._mark is mark:
                waited += min(now - last, 2 * TICK)
            else:
                mark, waited = self._mark, 0.0
            last = now
            alarmed = waited > min(5 * TICK, self._limit / 2) and self._folder.exists()
            if waited >= self._limit or alarmed:
                faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
                self._end_all(mark, waited)

    def _end_all(self, mark: tuple[str, int, int], waited: float) -> None:
        """RankReport, speak or let another speak, end what is frozen on this machine, and this process."""
        me, here = self._rank_info[self._world.rank], self._folder
        phase, samples_seen, marks = mark
        reached = marks, collectives_begun(self._world.size)
        self._write(RankReport(self._world.rank, me["pid"], me["host"], phase, samples_seen, *reached, waited))
        time.sleep(SETTLE)
        if self._speaks():
            line = diagnosis(read_reports(here), self._rank_info)
            print(f"mmldm: {line}; stacks: {here}", file=sys.stderr, flush=True)
            requeue.report_exit_status(EXIT_HUNG)
            (here / DIAGNOSIS).write_text(line + "\n")
        deadline = time.monotonic() + HEARD
        while not _said(here / DIAGNOSIS) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._kill_frozen()
        os._exit(EXIT_HUNG)

    def _speaks(self) -> bool:
        """Return whether it falls to this rank to speak: to the first that makes the file."""
        try:
            (self._folder / DIAGNOSIS).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _write(self, report: RankReport) -> None:
        """Write ``report`` with the stacks of this process and its loader workers; whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = _file(self._folder, report.rank)
        aside = file.with_suffix(".tmp")
        with aside.open("wb", buffering=0) as stream:
            stream.write(json.dumps(asdict(report)).encode() + b"\n\n")
            faulthandler.dump_traceback(stream, all_threads=True)
            for worker in multiprocessing.active_children():
                stream.write(f"\nloader worker {worker.pid}:\n".encode() + self._stacks_of(worker.pid))
        aside.rename(file)

    def _stacks_of(self, worker: int) -> bytes:
        """Have the loader worker write its stacks, and return them."""
        begin = seen = self.worker_stacks.seek(0, os.SEEK_END)
        with suppress(ProcessLookupError):
            os.kill(worker, WRITE_STACKS)
        for _ in range(15):
            time.sleep(0.02)
            size = self.worker_stacks.seek(0, os.SEEK_END)
            if begin < seen == size:
                break
            seen = size
        self.worker_stacks.seek(begin)
        return self.worker_stacks.read() or b"no answer\n"

    def _kill_frozen(self) -> None:
        """Kill the ranks of this machine that gave no report: their launcher would wait for them."""
        me = self._rank_info[self._world.rank]
        for rank, other in enumerate(self._rank_info):
            here = all(other[key] == me[key] for key in ("host", "boot", "processes"))
            if here and not _file(self._folder, rank).exists() and identity(other["pid"]) == other:
                with suppress(ProcessLookupError):
                    os.kill(other["pid"], signal.SIGKILL)


def diagnosis(reports: dict[int, RankReport], rank_info: list[dict[str, Any]]) -> str:
    """Say which ranks hang, and where, from the ``reports`` of those that live and the ``rank_info`` of all."""
    silent = [rank for rank in range(len(rank_info)) if rank not in reports]
    waiting = max(reports.values(), key=lambda report: report.reached)
    if silent:
        names = _names(silent, rank_info)
        verb = "show" if len(silent) > 1 else "shows"
        return f"{names} {verb} no sign of life since {waiting.seconds:.0f} s at {waiting.samples_seen:,} samples"
    last = min(reports.values(), key=lambda report: report.reached)
    behind = [rank for rank, report in sorted(reports.items()) if report.reached == last.reached]
    doing = DOING.get(last.phase, f"hangs in its {last.phase}")
    if len(behind) > 1:
        doing = f"like {len(behind) - 1} other{'s' * (len(behind) > 2)} {doing}"
    return f"{_names(behind[:1], rank_info)} {doing} since {last.seconds:.0f} s at {last.samples_seen:,} samples"


def read_reports(folder: Path) -> dict[int, RankReport]:
    """Return the reports in ``folder`` by rank."""
    _refresh(folder)
    found = (RankReport(**json.loads(file.open().readline())) for file in folder.glob("rank-*.txt"))
    return {report.rank: report for report in found}


def _names(ranks: list[int], rank_info: list[dict[str, Any]]) -> str:
    shown = [f"{rank} (pid {rank_info[rank]['pid']} on {rank_info[rank]['host']})" for rank in ranks[:8]]
    more = [f"{len(ranks) - 8} more"] if len(ranks) > 8 else []
    return f"rank{'s' * (len(ranks) > 1)} {', '.join([*shown, *more])}"


def _refresh(folder: Path) -> None:
    """Change ``folder``: only then does NFS ask its server what else is new there."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _said(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"
