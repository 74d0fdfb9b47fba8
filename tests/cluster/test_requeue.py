"""Whether a failed training is queued again, decided in a process of its own as in a job, with a stand-in SLURM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmldm_scale.cluster import requeue
from mmldm_scale.common.errors import Outage

PROGRAM = "import sys; from mmldm_scale.cli import main; sys.exit(main())"
TRAIN = ("train", "dit", "shards=data")


class Cluster:
    """Starts ``mmldm train --launch`` as a job's batch script does; scontrol only notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.run, self._calls, program = folder / "run", folder / "calls", folder / "scontrol"
        self._env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "SLURM_NTASKS": "16",
            "MMLDM_DOCTOR": "off",
        }
        program.write_text(f'#!/bin/sh\necho "$@" >> {self._calls}\necho $REASON\n')
        program.chmod(0o755)

    def ending_because(self, reason: str) -> None:
        """Have scontrol give ``reason`` for the end of the job."""
        self._env["REASON"] = f"JobId=17 JobState=COMPLETING Reason={reason} Dependency=(null)"

    def start(
        self, training: str, job: str = "17", restart: int = 0, trouble: int | None = None
    ) -> subprocess.Popen[str]:
        """Start the shell text ``training`` in the place of the ranks; ``trouble``: and of the doctor's, to end so."""
        env = self._env | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)} if job else self._env
        if trouble is not None:
            env |= {"MMLDM_DOCTOR": "on", "TROUBLE": str(trouble)}
        command = [sys.executable, "-c", PROGRAM, *TRAIN, f"run={self.run}", "--launch", f"sh -c '{training}'"]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def finish(self, training: str, **options: Any) -> tuple[int, str]:
        """Return the exit status and what was said; ``options`` as for :meth:`start`."""
        process = self.start(training, **options)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said

    def requeued(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def save(self, samples_seen: int) -> None:
        (self.run / f"checkpoints/step-{samples_seen:012d}").mkdir(parents=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_failure_is_queued_again_until_three_starts_found_the_same_checkpoint(cluster: Cluster) -> None:
    cluster.save(1280)
    for restart in (0, 1):
        status, said = cluster.finish("exit 7", restart=restart)
        assert (status, said) == (7, f"mmldm: {cluster.run}: the training failed (status 7); job 17 is queued again\n")
    line = (
        f"mmldm: {cluster.run}: 3 starts in a row ended at 1,280 samples without a new checkpoint; not queued again; "
        "see the job's log, and submit it anew once that is mended\n"
    )
    assert cluster.finish("exit 7", restart=2) == (7, line)
    assert cluster.finish("exit 7", restart=3) == (2, line)  # SLURM itself has requeued it: a node died
    assert cluster.requeued() == ["requeue 17"] * 2
    starts = [json.loads(text) for text in (cluster.run / requeue.STARTS).read_text().splitlines()]
    assert [(s["job"], s["restarts"], s["tasks"], s["samples_seen"]) for s in starts] == [
        ("17", restart, 16, 1280) for restart in range(3)
    ]
    (cluster.run / "hangs/2026-11-21T18-00-00").mkdir(parents=True)
    assert f"see the job's log and {cluster.run}/hangs/2026-11-21T18-00-00, and" in cluster.finish("exit 7")[1]
    assert cluster.finish("exit 7", job="18")[0] == 7  # a person has submitted it anew
    assert cluster.requeued() == ["requeue 17"] * 2 + ["requeue 18"]


def test_trouble_that_the_doctor_finds_ends_a_job_unless_it_was_queued_again(cluster: Cluster) -> None:
    """Then it may be that of another node than the user has seen the job begin on."""
    training = 'case "$*" in *" doctor --quick --trainable dit "*) exit $TROUBLE;; esac; echo trained >&2'
    refused = f"mmldm: {cluster.run}: not begun, because of the trouble above; MMLDM_DOCTOR=off begins all the same\n"
    again = f"{cluster.run}: the training was not begun, because of the trouble above; job 17 is queued again\n"
    assert cluster.finish(training, trouble=0) == (0, "trained\n")
    assert cluster.finish(training, trouble=1) == (1, refused)
    assert cluster.finish(training, trouble=2) == (2, "")  # a mistake, of which the doctor has spoken
    assert cluster.requeued() == []
    assert cluster.finish(training, trouble=1, restart=1, job="18")[0] == 1
    assert cluster.finish(training, trouble=1, restart=1) == (1, f"mmldm: {again}")
    assert cluster.requeued() == ["requeue 18", "requeue 17"]


def test_with_a_new_checkpoint_the_count_begins_anew(cluster: Cluster) -> None:
    for restart in range(6):
        if restart % 2 == 0:
            cluster.save(1280 * (restart + 1))
        assert cluster.finish("exit 7", restart=restart)[0] == 7
    assert cluster.requeued() == ["requeue 17"] * 6


@pytest.mark.parametrize("status", [0, 2, 75])
def test_what_ends_in_order_is_left_to_the_training(cluster: Cluster, status: int) -> None:
    """srun's own status is that of a killed task, whatever the first one to end had."""
    training = "exit 0" if status == 0 else f"printf {status} > $MMLDM_EXIT_STATUS; exit 143"
    assert cluster.finish(training) == (status, "")
    assert cluster.requeued() == []
    assert [file.name for file in cluster.run.iterdir()] == [requeue.STARTS]


def test_an_outage_is_queued_again(cluster: Cluster) -> None:
    assert cluster.finish(f"printf {Outage.status} > $MMLDM_EXIT_STATUS; exit 143")[0] == Outage.status
    assert cluster.requeued() == ["requeue 17"]


@pytest.mark.parametrize("reason", ["None", "TimeLimit"])
def test_ended_by_slurm_it_is_queued_again_only_for_the_time_limit(cluster: Cluster, reason: str) -> None:
    cluster.ending_because(reason)
    process = cluster.start('trap "exit 9" TERM; touch $MMLDM_EXIT_STATUS.here; sleep 60 2> /dev/null & wait')
    deadline = time.monotonic() + 30
    while not list(cluster.run.glob("*.here")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 9
    again = reason == "TimeLimit"
    line = f"mmldm: {cluster.run}: the training ran into the time limit; job 17 is queued again\n"
    assert said == line * again
    assert cluster.requeued() == ["show job 17 --oneliner", *["requeue 17"] * again]


def test_outside_of_a_job_it_only_starts_the_training(cluster: Cluster) -> None:
    assert cluster.finish("exit 7", job="") == (7, "")
    assert not cluster.run.exists()


def test_a_mistake_is_one_line_before_anything_starts(cluster: Cluster) -> None:
    command = [sys.executable, "-c", PROGRAM, *TRAIN, "training.sed=1", "--launch", "touch started"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cluster.run.parent)
    assert done.returncode == 2
    assert "sed" in done.stderr
    assert not (cluster.run.parent / "started").exists()
