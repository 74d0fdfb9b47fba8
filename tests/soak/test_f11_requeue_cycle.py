"""F11: on a real SLURM of two nodes a training is signalled, saves, is requeued and resumes, again and again.

The short form is tests/slurm/test_launch.py.
"""

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import cluster, two_nodes  # noqa: F401  (fixtures)
from tests.support.faults import fault_trials

pytestmark = pytest.mark.slurm

TOY = Path(__file__).parents[1] / "support/toy_trainable.py"
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")
LIMIT = 15.0  # seconds from the signal until the run has resumed, on a machine that does nothing else
ENDLESS = 16_000_000
LOG_EVERY = 160


@fault_trials.counts(full=20)
def test_a_signalled_job_saves_is_requeued_and_resumes(count, two_nodes, tmp_path):  # noqa: F811
    script, log = tmp_path / "toy.sh", tmp_path / "run/log.jsonl"
    script.write_text(f'#!/bin/bash\nexec srun --kill-on-bad-exit=1 python {TOY} "$@"\n')
    lengths = {"total_samples": ENDLESS, "log_every": LOG_EVERY, "checkpoint_every": ENDLESS, "preview_every": ENDLESS}
    settings = [f"training.{name}={length}" for name, length in lengths.items()]
    job = two_nodes.submit(script, f"run={tmp_path}/run", *settings, options=OPTIONS)
    two_nodes.wait_until(log.exists, job, 60)

    def logged() -> list[int]:
        return [json.loads(line)["samples_seen"] for line in log.read_text().splitlines(keepends=True) if "\n" in line]

    def trial(number: int) -> str:
        dice, before = random.Random(11_000 + number), len(logged())
        goal = before + dice.randint(1, 5)
        two_nodes.wait_until(lambda: len(logged()) >= goal, job, 60)
        name, began = ("USR1", "USR2")[number % 2], time.monotonic()
        two_nodes.run("scancel", f"--signal={name}", str(job))
        two_nodes.restart(job, 60)
        two_nodes.wait_until(lambda: two_nodes.output(job).count("resuming from") == number + 1, job, 60)
        seconds = time.monotonic() - began
        assert two_nodes.output(job).count("; saved") == number + 1
        seen = logged()
        assert len({*seen}) == len(seen), "a step is logged twice"
        assert {*range(LOG_EVERY, seen[-1], LOG_EVERY)} <= {*seen}
        assert seconds <= LIMIT * max(1.0, os.getloadavg()[0] / os.cpu_count()), f"{seconds:.1f} s"
        return f"{name}, within {5 * (1 + seconds // 5):.0f} s"

    fault_trials.run("F11 signalled, requeued and resumed", count, trial)
