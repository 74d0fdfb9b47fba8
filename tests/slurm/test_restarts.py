"""A training that fails as a job of two nodes: it is queued again and carries on, but not without end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.training.latent_sets import write_latents

pytestmark = pytest.mark.slurm

OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")
SMALL = (
    *("model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"),
    *("training.precision=fp32", "training.global_batch=8", "training.micro_batch=4", "training.workers=1"),
    *("training.log_every=8", "training.preview_every=8000", "training.collective_timeout=10"),
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "latents", (30, 30))


@pytest.fixture
def submit(two_nodes, latents, tmp_path):
    """Submit a small training into ``tmp_path / "run"``; return the job's id."""

    def submit(*settings: str, launch: str = "srun --kill-on-bad-exit=1") -> int:
        script = tmp_path / "train.sh"
        script.write_text(f'#!/bin/bash\nexec python -m mmldm_scale.cli train dit --launch "{launch}" "$@"\n')
        return two_nodes.submit(script, f"shards={latents}", f"run={tmp_path}/run", *SMALL, *settings, options=OPTIONS)

    return submit


def endless(every: int) -> tuple[str, str]:
    return "training.total_samples=8000000", f"training.checkpoint_every={every}"


def ranks(run: Path) -> dict[int, int]:
    """Return the process ids of the ranks that train into ``run``, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().decode().split("\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        rank = [int(part[13:]) for part in environment if part.startswith(b"SLURM_PROCID=")]
        trains = command[1:3] == ["-m", "mmldm_scale.cli"] and f"run={run}" in command and "--launch" not in command
        if rank and trains and b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
            found[rank[0]] = int(process.name)
    return found


def checkpoints(run: Path) -> list[str]:
    return sorted(folder.name for folder in run.glob("checkpoints/step-*[0-9]"))


def starts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def start_again(two_nodes, job: int, number: int) -> None:
    """Wait until ``job`` is queued again for the ``number``-th time, and have SLURM start it."""
    two_nodes.wait_until(lambda: two_nodes.tasks(job)[0]["Restarts"] == str(number), job, 60)
    two_nodes.restart(job, 60)


def finish(two_nodes, job: int, run: Path) -> str:
    """Let the requeued ``job`` find an end of its training; return what it printed."""
    start_again(two_nodes, job, 1)
    two_nodes.wait_until(lambda: len(starts(run)) == 2 and "carrying on from" in two_nodes.output(job), job, 90)
    two_nodes.run("scancel", str(job))
    return two_nodes.wait(job, 60).output


def test_a_killed_rank_ends_the_job_which_is_queued_again_and_carries_on(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(*endless(80))
    two_nodes.wait_until(lambda: len(checkpoints(run)) > 1, job, 90)
    os.kill(ranks(run)[1], signal.SIGKILL)
    output = finish(two_nodes, job, run)
    assert output.count(f"{run}: the training failed (status 143); job {job} is queued again") == 1
    first, second = starts(run)
    assert (first["job"], first["restarts"], first["tasks"], first["samples_seen"]) == (str(job), 0, 2, 0)
    assert (second["job"], second["restarts"]) == (str(job), 1)
    assert second["samples_seen"] >= 80


def test_a_frozen_rank_is_named_and_the_job_carries_on(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(*endless(80))
    two_nodes.wait_until(lambda: len(checkpoints(run)) > 1, job, 90)
    pid = ranks(run)[1]
    os.kill(pid, signal.SIGSTOP)
    output = finish(two_nodes, job, run)
    assert output.count(f"mmldm: rank 1 (pid {pid} on {os.uname().nodename}) shows no sign of life since ") == 1
    assert output.count(f"{run}: the training failed (status 70); job {job} is queued again") == 1
    assert [file.name for file in run.glob("hangs/*/rank-*")] == ["rank-00000.txt"]


def test_signalled_it_saves_with_its_loader_workers_alive_and_is_queued_again_once(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(*endless(8000000))
    two_nodes.wait_until((run / "log.jsonl").exists, job, 90)
    two_nodes.run("scancel", "--signal=USR1", str(job))  # what --signal=USR1@120 sends, to every process of a task
    output = finish(two_nodes, job, run)
    assert "after SIGUSR1; saved" in output
    assert "the training failed" not in output
    assert starts(run)[1]["samples_seen"] > 0


def test_a_run_that_gets_nowhere_is_not_queued_again_for_ever(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(*endless(8000000), launch="srun --kill-on-bad-exit=1 timeout --signal=KILL 2")
    for number in (1, 2):
        start_again(two_nodes, job, number)
    result = two_nodes.wait(job, 60)
    assert result.state == "FAILED"
    assert len(starts(run)) == 3
    assert result.output.count("is queued again") == 2
    line = f"mmldm: {run}: 3 starts in a row ended at 0 samples without a new checkpoint; not queued again; see "
    assert result.output.count(line) == 1
    two_nodes.run("scontrol", "requeue", str(job))  # as SLURM does when a node dies
    start_again(two_nodes, job, 3)
    result = two_nodes.wait(job, 60)
    assert result.exit_code == 2
    assert len(starts(run)) == 3
    assert result.output.count(line) == 2


def test_the_users_mistake_is_not_tried_again(two_nodes, submit, latents, tmp_path):
    job = submit("training.total_samples=80", f"shards={latents}-elsewhere")
    result = two_nodes.wait(job, 90)
    assert (result.state, result.exit_code) == ("FAILED", 2), result.output
    assert "queued again" not in result.output
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.yaml", "starts.jsonl"]


def test_cancelled_it_stays_down_and_is_whole(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(*endless(8000000))
    two_nodes.wait_until((run / "log.jsonl").exists, job, 90)
    two_nodes.run("scancel", str(job))
    result = two_nodes.wait(job, 60)
    assert "after SIGTERM; saved" in result.output
    assert "queued again" not in result.output
    time.sleep(1)
    assert two_nodes.tasks(job)[0]["JobState"] == "CANCELLED"
    assert len(checkpoints(run)) == 1
