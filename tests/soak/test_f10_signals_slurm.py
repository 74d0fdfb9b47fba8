"""F10 on a real SLURM of two nodes: a signal to all ranks, to one, or to the batch script's process.

The first step has ended: before it there is nothing to save. The ranks save at the same step. After SIGUSR1 and
SIGUSR2 the job is requeued and resumes there; after SIGTERM and SIGINT, which a user sends, it ends. The short forms
are in tests/slurm.
"""

import itertools
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.slurm.conftest import cluster, two_nodes  # noqa: F401  (fixtures)
from tests.slurm.test_requeue import endless, latents, newest, ranks, submit  # noqa: F401  (fixtures)
from tests.support.faults import fault_trials

pytestmark = pytest.mark.slurm

REQUEUED = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (*REQUEUED, signal.SIGTERM, signal.SIGINT)
TARGETS = ("all", "rank", "launcher")
FIRST_CHECKPOINT = (0, 80)  # samples; 0: none before the signal
COMBINATIONS = list(itertools.product(TARGETS, SIGNALS, FIRST_CHECKPOINT))
STOPPED = re.compile(r"stopping at ([\d,]+) samples after .*; saved")
LIMIT = 120.0  # seconds for a start, and for an end


def send(two_nodes, job: int, run: Path, number: signal.Signals, target: str) -> None:  # noqa: F811
    name = number.name.removeprefix("SIG")
    if target == "rank":
        os.kill(ranks(run)[1], number)
    else:
        batch = ["--batch"] if target == "launcher" else []
        two_nodes.run("scancel", *batch, f"--signal={name}", str(job))


@fault_trials.counts(full=len(COMBINATIONS))
def test_a_signal_to_a_job_saves_and_requeues_it_unless_a_user_ends_it(count, two_nodes, submit, tmp_path):  # noqa: F811
    def trial(number: int) -> str:
        target, sent, every = COMBINATIONS[number % len(COMBINATIONS)]
        folder = tmp_path / str(number)
        folder.mkdir()
        run = folder / "run"
        job = submit(folder, *endless(every or 8_000_000))
        log = run / "log.jsonl"
        begun = (lambda: newest(run) > 0) if every else (lambda: log.exists() and '"loss"' in log.read_text())
        two_nodes.wait_until(lambda: begun() and len(ranks(run)) == 2, job, LIMIT)
        send(two_nodes, job, run, sent, target)
        two_nodes.wait_until(lambda: STOPPED.search(two_nodes.output(job)) is not None, job, LIMIT)
        (at,) = STOPPED.findall(two_nodes.output(job))
        if sent in REQUEUED:
            two_nodes.restart(job, LIMIT)
            two_nodes.wait_until(lambda: f"resuming from {at} of" in two_nodes.output(job), job, LIMIT)
            assert two_nodes.tasks(job)[0]["Restarts"] == "1"
        else:
            ended = two_nodes.wait(job, LIMIT)
            assert two_nodes.tasks(job)[0]["Restarts"] == "0", ended.output
            assert newest(run) == int(at.replace(",", ""))
        assert "Traceback" not in two_nodes.output(job)
        two_nodes.cancel_all()
        shutil.rmtree(folder)
        return f"{sent.name} to {target}"

    fault_trials.run("F10 a job of two nodes is signalled", count, trial)
