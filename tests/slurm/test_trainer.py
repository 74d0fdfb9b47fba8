"""The trainer with the toy task as a job of two nodes: stopped by SLURM it saves, queues up again and carries on."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

TOY = Path(__file__).parents[1] / "training/toy.py"
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")
LENGTH = 8_000  # samples: 500 steps of the toy, some seconds
LOG_EVERY = 160


@pytest.fixture
def submit_toy(two_nodes, tmp_path):
    """Submit the toy with its run in ``tmp_path / "run"``; return the job's id once it trains."""

    def submit() -> int:
        script = tmp_path / "toy.sh"
        script.write_text(f'#!/bin/bash\nexec srun --kill-on-bad-exit=1 python {TOY} "$@"\n')
        settings = (f"run={tmp_path}/run", f"training.total_samples={LENGTH}", f"training.log_every={LOG_EVERY}")
        often = (f"training.{name}_every={LENGTH}" for name in ("checkpoint", "preview"))
        job = two_nodes.submit(script, *settings, *often, options=OPTIONS)
        two_nodes.wait_until((tmp_path / "run/log.jsonl").exists, job, 60)
        return job

    return submit


def test_signalled_it_saves_queues_up_again_and_carries_on(two_nodes, submit_toy, tmp_path):
    job = submit_toy()
    two_nodes.run("scancel", "--signal=USR1", str(job))  # what --signal=USR1@120 sends
    two_nodes.restart(job, 30)
    result = two_nodes.wait(job, 60)
    assert result.state == "COMPLETED", result.output
    assert "after SIGUSR1; saved" in result.output
    assert "carrying on from" in result.output
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = {record["samples_seen"] for record in records}
    assert logged >= set(range(LOG_EVERY, LENGTH + 1, LOG_EVERY))
    assert len(logged) == len(records)  # no step twice
