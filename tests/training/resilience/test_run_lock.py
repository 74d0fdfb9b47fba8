"""Two jobs in one run's folder: the second is refused; the lock of a dead job is taken over."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from mmldm_scale.common import leases
from mmldm_scale.common.errors import UserError
from mmldm_scale.runs import run_log
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.resilience import run_lock
from mmldm_scale.training.resilience.run_lock import locked
from tests.support.rights import without_rights
from tests.support.run_results import ENVIRONMENT, command


def test_second_job_is_refused_and_the_run_of_a_killed_one_resumes(tmp_path: Path, train) -> None:
    endless = command(tmp_path / "run", "training.total_samples=16000000", "training.checkpoint_every=16", processes=1)
    first = subprocess.Popen(endless, env={**ENVIRONMENT, "SLURM_JOB_ID": "4711"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("run/checkpoints/step-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = train("training.checkpoint_every=16", processes=1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.status == 2
    refusal = f"run: process {first.pid} on {os.uname().nodename} (job 4711) is training this run; end it first"
    assert second.output.count(refusal) == 1
    assert "Traceback" not in second.output
    (newest,) = sorted((tmp_path / "run/checkpoints").glob("step-*[0-9]"))[-1:]
    until = int(newest.name.removeprefix("step-")) + 16
    third = train(
        "training.checkpoint_every=16", f"training.total_samples={until}", "training.preview_every=16", processes=1
    )
    assert third.status == 0, third.output
    assert "resuming from" in third.output
    assert not (tmp_path / "run/leases").exists()


def test_a_suspended_job_whose_run_was_taken_over_ends_without_saving(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("training.total_samples=16000000", "training.checkpoint_every=160000", "training.log_every=16")
    endless = command(run, *options, processes=1)
    job = subprocess.Popen(endless, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(run_log.read(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGSTOP)
    lease = run / "leases/run"
    other = {**json.loads(lease.read_text()), "host": "far-away", "pid": 12, "job": "17", "token": "other"}
    lease.write_text(json.dumps(other))
    os.kill(job.pid, signal.SIGCONT)
    _, output = job.communicate(timeout=120)
    assert job.returncode == 2
    assert f"{run}: process 12 on far-away (job 17) took this run over while this process was suspended" in output
    assert "Traceback" not in output
    assert not list(run.glob("checkpoints/*"))
    assert json.loads(lease.read_text()) == other


@pytest.fixture
def elsewhere(tmp_path: Path, alone, monkeypatch) -> Path:
    """The lock of a job on another node."""
    monkeypatch.setattr(leases, "LEASE_TIMEOUT", 0.5)
    monkeypatch.setattr(run_lock, "POLL_INTERVAL", 0.05)
    with locked(tmp_path, alone):
        holder = json.loads((tmp_path / "leases/run").read_text())
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases/run").write_text(json.dumps({**holder, "host": "far-away", "pid": 12, "job": "17"}))
    return tmp_path


def test_lock_of_another_node_that_is_not_renewed_is_taken_over(elsewhere: Path, alone, capfd) -> None:
    with locked(elsewhere, alone):
        assert json.loads((elsewhere / "leases/run").read_text())["pid"] == os.getpid()
    assert "waiting to see whether process 12 on far-away (job 17) is still alive" in capfd.readouterr().err
    assert not (elsewhere / "leases").exists()


def test_lock_of_another_node_that_is_renewed_is_respected(elsewhere: Path, alone, monkeypatch) -> None:
    beats = iter(range(1, 1000))
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: os.utime(elsewhere / "leases/run", (next(beats),) * 2))
    with pytest.raises(UserError, match=r"process 12 on far-away \(job 17\) is training"), locked(elsewhere, alone):
        pass
    assert json.loads((elsewhere / "leases/run").read_text())["pid"] == 12


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch) -> None:
    run, alone = tmp_path / "run", World(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    run.mkdir()
    monkeypatch.setattr(World, "broadcast_from_rank0", lambda _, value: value)  # gloo's threads are not forked

    def lock() -> int:
        try:
            with locked(run, alone):
                return 0
        except UserError as error:
            return 2 if str(error) == f"{run}/leases: Permission denied" else 1

    assert without_rights(lock, run) == 2
