"""A training that fails as a job of two nodes: it is requeued and resumes, a limited number of times."""

import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.datasets.latent_sets import write_latents

pytestmark = pytest.mark.slurm

OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")
SMALL = (
    *("model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"),
    *("training.precision=fp32", "training.global_batch=8", "training.micro_batch=4", "training.workers=1"),
    *("training.log_every=8", "training.preview_every=8000", "training.collective_timeout=6"),
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "latents", (30, 30))


@pytest.fixture(scope="module")
def submit(cluster, latents):
    """Submit a small training into ``folder / "run"``; return the job's id."""

    def submit(folder: Path, *settings: str, launch: str = "srun --kill-on-bad-exit=1") -> int:
        script = folder / "train.sh"
        script.write_text(f'#!/bin/bash\nexec python -m mmldm_scale.cli train dit --under "{launch}" "$@"\n')
        return cluster.submit(script, f"shards={latents}", f"run={folder}/run", *SMALL, *settings, options=OPTIONS)

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
        trains = (
            command[1:4] == ["-P", "-m", "mmldm_scale.cli"] and f"run={run}" in command and "--under" not in command
        )
        if rank and trains and b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
            found[rank[0]] = int(process.name)
    return found


def newest(run: Path) -> int:
    """Return the samples seen at the newest checkpoint of ``run``."""
    return max((int(folder.name[5:]) for folder in run.glob("checkpoints/step-*[0-9]")), default=0)


def starts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def start_again(two_nodes, job: int, number: int) -> None:
    """Wait until ``job`` is requeued for the ``number``-th time, and have SLURM start it."""
    two_nodes.wait_until(lambda: two_nodes.tasks(job)[0]["Restarts"] == str(number), job, 60)
    two_nodes.restart(job, 60)


@dataclass(frozen=True)
class Life:
    """A job: in its first start a rank was killed, in its second one was frozen, in its third it was cancelled.

    Attributes:
        seen: samples seen at the newest checkpoint when the job started, at its two requeues and at its end.
        frozen: process id of the frozen rank.
    """

    job: int
    run: Path
    seen: list[int]
    frozen: int
    output: str


@pytest.fixture(scope="module")
def life(cluster, submit, tmp_path_factory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    run, seen = folder / "run", [0]
    job = submit(folder, *endless(80))
    for number, fault in enumerate((signal.SIGKILL, signal.SIGSTOP), start=1):
        cluster.wait_until(lambda: newest(run) >= seen[-1] + 160, job, 90)
        pid = ranks(run)[1]
        os.kill(pid, fault)
        start_again(cluster, job, number)
        seen.append(newest(run))
    cluster.wait_until(lambda: cluster.output(job).count("resuming from") == 2, job, 90)
    cluster.run("scancel", str(job))
    output = cluster.wait(job, 60).output
    return Life(job, run, [*seen, newest(run)], pid, output)


def test_a_killed_rank_ends_the_job_which_is_requeued_and_resumes(life):
    failed = rf"{life.run}: the training failed \(status (137|143)\); requeueing job {life.job}\n"
    assert len(re.findall(failed, life.output)) == 1  # 143: SIGTERM ended rank 0, before it missed its peer
    begun = [(start["job"], start["restarts"], start["tasks"], start["samples_seen"]) for start in starts(life.run)]
    assert begun == [(str(life.job), number, 2, life.seen[number]) for number in range(3)]
    assert f"resuming from {life.seen[1]:,} of" in life.output


def test_a_frozen_rank_is_named_and_the_job_resumes(life):
    named = f"mmldm: rank 1 (pid {life.frozen} on {os.uname().nodename}) shows no sign of life since "
    assert life.output.count(named) == 1
    assert life.output.count(f"{life.run}: the training failed (status 70); requeueing job {life.job}") == 1
    assert [file.name for file in life.run.glob("hangs/*/rank-*")] == ["rank-00000.txt"]
    assert f"resuming from {life.seen[2]:,} of" in life.output


def test_cancelled_it_saves_with_its_loader_workers_alive_and_stays_down(cluster, life):
    assert f"stopping at {life.seen[3]:,} samples after SIGTERM; saved" in life.output
    assert life.output.count("requeueing job") - life.output.count("was cancelled and is not requeued") == 2
    time.sleep(1)
    assert cluster.tasks(life.job)[0]["JobState"] == "CANCELLED"


def test_a_run_without_progress_is_not_requeued_for_ever(two_nodes, submit, tmp_path):
    run = tmp_path / "run"
    job = submit(tmp_path, *endless(8000000), launch="srun --kill-on-bad-exit=1 timeout --signal=KILL 2")
    for number in (1, 2):
        start_again(two_nodes, job, number)
    result = two_nodes.wait(job, 60)
    assert result.state == "FAILED"
    assert len(starts(run)) == 3
    assert result.output.count("requeueing job") == 2
    line = f"{run}: 3 starts in a row ended at 0 samples without a new checkpoint; job {job} is not requeued; see "
    assert result.output.count(line) == 1
    two_nodes.run("scontrol", "requeue", str(job))  # as SLURM does when a node dies
    start_again(two_nodes, job, 3)
    result = two_nodes.wait(job, 60)
    assert result.exit_code == 2
    assert len(starts(run)) == 3
    assert result.output.count(line) == 2


def test_a_users_mistake_is_not_requeued(two_nodes, submit, latents, tmp_path):
    job = submit(tmp_path, "training.total_samples=80", "training.validate_every=16", f"shards={latents}")
    result = two_nodes.wait(job, 90)
    assert (result.state, result.exit_code) == ("FAILED", 2), result.output
    assert "requeued" not in result.output
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["starts.jsonl"]
