"""The check whether a signal that asks a run to save reaches its ranks, by sending one.

SLURM signals the tasks of a job step before the time limit, and ``--processes`` hands signals on to its ranks. A shell
or a container's start program between them and the ranks may end at the signal, or keep it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from mmldm_scale.cluster import slurm
from mmldm_scale.cluster.local_launcher import STORE
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.doctor.ranks import Ranks

SENT = signal.SIGUSR1  # what the job scripts ask SLURM to send before the time limit
SECONDS = 5.0  # until a signal counts as lost
LOST = "at the time limit a run would lose what it did since its last checkpoint"
REMEDY = "let the launcher start mmldm without a program between them, or by `exec mmldm`"

_arrived = threading.Event()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Note that :data:`SENT` has arrived, instead of ending at it; enter this in the main thread, before any check."""
    _arrived.clear()
    before = signal.signal(SENT, lambda number, frame: _arrived.set())
    try:
        yield
    finally:
        signal.signal(SENT, before)


def delivery(here: Ranks) -> Iterator[Finding]:
    """Send :data:`SENT` to the ranks, as SLURM or our launcher would, and check that it arrives; all ranks together."""
    launcher = _launcher()
    if launcher is None:
        yield _without_sending(here)
        return
    fatal = [text for text in here.gather(_ended_by_signal()) if text]
    if fatal:
        yield Finding("warning", "signals", f"{SENT.name} ends {fatal[0]}: {LOST}", REMEDY)
        return
    problem = here.gather(_send() if here.rank == 0 else None)[0]
    if problem:
        text = f"whether {SENT.name} reaches the ranks could not be tested: {problem}"
        yield Finding("warning", "signals", text, "send one to a short run: scancel --signal=USR1 JOB")
        return
    by_rank = here.gather(_arrived.wait(SECONDS))
    lost = [str(rank) for rank, has_arrived in enumerate(by_rank) if not has_arrived]
    if lost:
        text = f"{SENT.name} to {launcher} did not reach rank {', '.join(lost[:8])} within {SECONDS:g} s: {LOST}"
        yield Finding("warning", "signals", text, REMEDY)
    else:
        yield Finding("ok", "signals", f"{SENT.name} to {launcher} reached {here.size} rank(s)")


def _launcher() -> str | None:
    """Return what the signal is sent to; None if nothing is known that would hand it on."""
    if slurm.in_step():
        return "the job step"
    return "the launcher" if STORE in os.environ else None


def _without_sending(here: Ranks) -> Finding:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        text = "torchrun hands on SIGTERM and Ctrl-C alone, and kills the ranks 30 s later"
        return Finding("warning", "signals", text, "--processes N hands on all, and waits until the run has saved")
    if here.size > 1:
        text = "unknown launcher: whether it hands signals on is not known"
        return Finding("warning", "signals", text, "send SIGUSR1 to it in a short run")
    return Finding("ok", "signals", "no launcher: they reach this process itself")


def _send() -> str:
    """Send the signal; return why that was not possible, or an empty text."""
    if not slurm.in_step():
        os.kill(os.getppid(), SENT)
        return ""
    try:
        slurm.signal_step(SENT.name.removeprefix("SIG"))
    except slurm.SlurmError as error:
        return str(error)[:200]
    return ""


def _ended_by_signal() -> str:
    """Return the process between the launcher and this one that :data:`SENT` would end; empty without one.

    Processes outside of a container's own process numbers cannot be seen.
    """
    pid = os.getppid() if slurm.in_step() else 0  # our own launcher starts the ranks itself
    while pid > 1:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return ""
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status["Name"].startswith("slurmstepd"):
            return ""
        survives = int(status["SigCgt"], 16) | int(status["SigIgn"], 16)
        if not survives >> (SENT - 1) & 1:
            return f"{status['Name']} (pid {pid} on {slurm.node_name()}), which started a rank"
        pid = int(status["PPid"])
    return ""
