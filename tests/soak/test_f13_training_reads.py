"""F13: a loader worker is killed, or a sample is damaged, while a run trains: a clear end, or other samples instead.

The short forms are in tests/training: test_data.py, test_samples.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.datasets.latent_sets import damage, write_latents
from tests.support.faults import fault_trials
from tests.support.run_results import ENVIRONMENT

STEPS = 12
SMALL = (
    *("model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"),
    *(
        "training.precision=fp32",
        "training.global_batch=8",
        "training.micro_batch=8",
        f"training.total_samples={8 * STEPS}",
    ),
    *("training.log_every=8", "training.checkpoint_every=16", "training.preview_every=96", "training.workers=2"),
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("good") / "latents", (30, 30))


def start(latents: Path, run: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmldm_scale.cli", "train", "dit", f"shards={latents}", f"run={run}", *SMALL]
    return subprocess.Popen(
        [*command, *overrides], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(run: Path) -> list[tuple[int, float]]:
    """Return the loss after each number of samples seen; a step that was done again counts as it was the last time."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return sorted({record["samples_seen"]: record["loss"] for record in records}.items())


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the loader workers of a run: its children that are copies of it."""
    found = []
    for thread in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in map(int, thread.read_text().split()):
            same = Path(f"/proc/{child}/cmdline").read_bytes() == Path(f"/proc/{process.pid}/cmdline").read_bytes()
            found += [child] if same else []
    return found


@fault_trials.counts(full=20)
def test_a_run_whose_loader_worker_is_killed_reports_it_and_resumes(count, latents, tmp_path):
    whole = start(latents, tmp_path / "undisturbed")
    assert whole.wait(120) == 0, whole.stdout.read()

    def trial(number: int) -> str:
        dice, run = random.Random(13_000 + number), tmp_path / str(number)
        process = start(latents, run)
        logged, goal = run / "log.jsonl", dice.randrange(STEPS - 2)
        while process.poll() is None and (not logged.exists() or len(logged.read_text().splitlines()) < goal):
            time.sleep(0.002)
        found = workers_of(process) if process.poll() is None else []
        if not found:
            process.communicate()
            outcome = "done before the kill"
        else:
            os.kill(dice.choice(found), signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
            outcome = "all was loaded by then" if process.returncode == 0 else "ended, and named the worker"
            assert process.returncode == 0 or "DataLoader worker" in out, out
        again = start(latents, run)
        out, _ = again.communicate(timeout=120)
        assert again.returncode == 0, out
        assert losses(run) == losses(tmp_path / "undisturbed")
        shutil.rmtree(run)
        return outcome

    fault_trials.run("F13 a loader worker is killed", count, trial)


@fault_trials.counts(full=20)
def test_damaged_samples_are_quarantined_up_to_the_share_allowed(count, latents, tmp_path):
    def trial(number: int) -> str:
        dice, folder = random.Random(13_500 + number), tmp_path / str(number)
        shutil.copytree(latents, folder / "latents")
        bad = {damage(folder / "latents", index) for index in dice.sample(range(60), dice.randint(1, 4))}
        run = start(folder / "latents", folder / "run", "reading.damaged_share=0.04")  # 2 of 60
        out, _ = run.communicate(timeout=120)
        rows = [json.loads(file.read_text()) for file in (folder / "run" / "quarantine").glob("*.json")]
        assert {row["key"] for row in rows} <= bad
        assert all(row["shard"].startswith("shard-00000") and row["key"] in out for row in rows)
        if len(bad) <= 2:  # 96 samples of 60: each was read
            assert (run.returncode, {row["key"] for row in rows}) == (0, bad), out
            assert losses(folder / "run")[-1][0] == 8 * STEPS
        else:
            assert run.returncode == 2, out
            assert "damaged samples, reading.damaged_share allows 2" in out.splitlines()[-1]
        shutil.rmtree(folder)
        return "trained on" if len(bad) <= 2 else "stopped in one line"

    fault_trials.run("F13 damaged samples are read", count, trial)
