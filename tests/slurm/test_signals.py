"""The doctor's check of signals, and what it says of an array's task, in steps of a real job."""

import sys

import pytest

pytestmark = pytest.mark.slurm

RANK = """
from mmldm_scale.doctor import host, ranks, signals

with signals.listening():
    here = ranks.join(60)
    findings = [*signals.delivery(here), *host.slurm_job()]
    if here.rank == 0:
        print("\\n".join(finding.line() for finding in findings), flush=True)
    ranks.leave(here)
"""
JOB = """#!/bin/bash
[[ $SLURM_ARRAY_TASK_ID == 3 ]] || exit 0  # the array's other task
srun {python} rank.py
srun bash -c '{python} rank.py; true'
"""


def test_a_signal_that_slurm_sends_and_what_keeps_it(two_nodes, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job.sh").write_text(JOB.format(python=sys.executable))
    options = ("--nodes=1", "--ntasks=2", "--cpus-per-task=1", "--array=3,5%1", "--time=20", "--requeue")
    job = two_nodes.submit("job.sh", options=options, array=True, cwd=tmp_path)
    result = two_nodes.wait(job, 180)
    lines = result.output.splitlines()
    assert any(f"job {job}_3, one of 2 of its array, 1 node(s), time limit 00:20:00" in line for line in lines)
    of_signals = [line for line in lines if " signals " in line]
    assert of_signals[0] == "ok       signals        SIGUSR1 to the job step reached 2 rank(s)"
    assert of_signals[1].startswith("warning  signals        SIGUSR1 ends bash (pid ")
    assert "which started a rank: at the time limit a run would lose" in of_signals[1]
