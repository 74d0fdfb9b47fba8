"""F16: two jobs on one run folder: one works, the other is refused in a line; killed or stopped, the run resumes.

The short form is tests/training/resilience/test_run_lock.py.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmldm_scale.common.processes import identity
from tests.soak.test_f13_training_reads import SMALL
from tests.support.datasets.latent_sets import write_latents
from tests.support.faults import fault_trials
from tests.support.run_results import ENVIRONMENT

REFUSAL = " is training this run; end it first, or set another run="
EVERY = 80  # samples from one checkpoint to the next
SETTINGS = (*SMALL, "training.micro_batch=4", f"training.checkpoint_every={EVERY}", "training.preview_every=16000000")
ENDLESS = (*SETTINGS, "training.total_samples=16000000")
PATIENCE = 120.0  # seconds


class Job:
    """``mmldm train`` in one process or several."""

    def __init__(self, latents: Path, run: Path, output: Path, processes: int, *overrides: str) -> None:
        self._output = output.open("w+")
        several = ("--processes", str(processes)) if processes > 1 else ()
        command = [sys.executable, "-m", "mmldm_scale.cli", "train", "dit", *several, f"shards={latents}", f"run={run}"]
        self.process = subprocess.Popen(
            [*command, *overrides],
            env=ENVIRONMENT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def end(self, number: signal.Signals) -> None:
        """Signal all its processes, and wait until they are gone."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        family = [self.process.pid, *(int(pid) for file in children for pid in file.read_text().split())]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self.process.wait(PATIENCE)
        wait_until(lambda: not any(map(identity, family)), [self])


def wait_until(happened, jobs: list[Job]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, [job.said() for job in jobs]
        time.sleep(0.02)


def trial(latents: Path, folder: Path, number: int) -> str:
    dice, run = random.Random(16_000 + number), folder / "run"
    folder.mkdir()
    jobs = []
    for name in ("one", "other"):
        jobs.append(Job(latents, run, folder / name, dice.choice([1, 2]), *ENDLESS))
        time.sleep(dice.choice([0.0, 1.0, 20.0]) * dice.random())
    try:
        wait_until(lambda: any(job.process.poll() is not None for job in jobs), jobs)
        refused, works = sorted(jobs, key=lambda job: job.process.poll() is None)
        assert refused.process.wait() == 2, refused.said()
        (line,) = refused.said().splitlines()[-1:]
        assert line.startswith(f"mmldm: {run}: process ")
        assert line.endswith(REFUSAL)
        assert refused.said().count(REFUSAL) == 1, refused.said()
        saved = set(run.glob("checkpoints/step-*[0-9]"))
        wait_until(lambda: set(run.glob("checkpoints/step-*[0-9]")) - saved, jobs)
        assert works.process.poll() is None, works.said()
        how = dice.choice([signal.SIGKILL, signal.SIGTERM])
        works.end(how)
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.end(signal.SIGKILL)
    newest = max(int(folder.name.removeprefix("step-")) for folder in run.glob("checkpoints/step-*[0-9]"))
    third = Job(latents, run, folder / "third", 1, *SETTINGS, f"training.total_samples={newest + 8}")
    assert third.process.wait(PATIENCE) == 0, third.said()
    assert f"resuming from {newest:,} of" in third.said()
    assert not (run / "leases").exists()
    shutil.rmtree(folder)
    return f"{'the first' if works is jobs[0] else 'the second'} worked and got {how.name}"


@fault_trials.counts(full=10)
def test_of_two_jobs_on_a_run_one_is_refused(count, tmp_path):
    latents = write_latents(tmp_path / "latents", (30, 30))
    fault_trials.run("F16 two jobs on one run", count, lambda number: trial(latents, tmp_path / str(number), number))
