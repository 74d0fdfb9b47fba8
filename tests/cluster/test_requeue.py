"""Whether a failed training is requeued, decided in a process of its own as in a job, with a stand-in for SLURM."""

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
from tests.support.datasets.latent_sets import write_latents

PROGRAM = "import sys; from mmldm_scale.cli import main; sys.exit(main())"
TRAIN = ("train", "dit", "--preset", "S")


class Cluster:
    """Starts ``mmldm train --under`` as a job's batch script does; ``scontrol`` writes its arguments to a file.

    It answers "show job" as SLURM does: "Restarts" has grown after a requeue, unless the job was cancelled.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = write_latents(folder / "latents", (4,))
        self.run, self._calls, program = folder / "run", folder / "calls", folder / "scontrol"
        self._env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "SLURM_NTASKS": "16",
            "MMLDM_DOCTOR": "off",
        }
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {self._calls}\n'
            'echo "JobId=17 JobState=${STATE:-COMPLETING} Reason=${REASON:-None} Dependency=(null)'
            ' Restarts=$((${SLURM_RESTART_COUNT:-0} + ${REQUEUES:-1}))"\n'
        )
        program.chmod(0o755)
        self._folder = folder

    def add(self, name: str, text: str) -> None:
        """Put the shell script ``text`` in the place of the program ``name``."""
        (self._folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._folder / name).chmod(0o755)

    def time_limit(self) -> None:
        """Have SLURM end the job because of its time limit: a request for running jobs does not requeue it."""
        self._env |= {"REASON": "TimeLimit", "REQUEUES": "0"}

    def cancel(self) -> None:
        """Have the job cancelled."""
        self._env["REQUEUES"] = "0"

    def keep_running(self) -> None:
        """Have SLURM say that the job still runs: the signal came from elsewhere."""
        self._env |= {"STATE": "RUNNING", "REQUEUES": "0"}

    def start(
        self, training: str, job: str = "17", restart: int = 0, doctor_status: int | None = None, under: str = ""
    ) -> subprocess.Popen[str]:
        """Start the shell text ``training`` in place of the ranks, and of the doctor if ``doctor_status`` is given.

        Or, if ``under`` is given, that program.
        """
        env = self._env | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)} if job else self._env
        if doctor_status is not None:
            env |= {"MMLDM_DOCTOR": "on", "DOCTOR_STATUS": str(doctor_status)}
        settings = (f"shards={self._shards}", f"run={self.run}", "--under", under or f"sh -c '{training}'")
        command = [sys.executable, "-c", PROGRAM, *TRAIN, *settings]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def finish(self, training: str, **options: Any) -> tuple[int, str]:
        """Return the exit status and the standard error; ``options`` as for :meth:`start`."""
        process = self.start(training, **options)
        stderr = process.communicate(timeout=60)[1]
        return process.returncode, stderr

    def requeues(self) -> list[str]:
        """Return the arguments of each call of ``scontrol requeue``."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call.removeprefix("requeue ") for call in calls if call.startswith("requeue ")]

    def save(self, samples_seen: int) -> None:
        (self.run / f"checkpoints/step-{samples_seen:012d}").mkdir(parents=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_failure_is_requeued_until_three_starts_began_at_the_same_checkpoint(cluster: Cluster) -> None:
    cluster.save(1280)
    for restart in (0, 1):
        status, stderr = cluster.finish("exit 7", restart=restart)
        assert (status, stderr) == (7, f"mmldm: {cluster.run}: the training failed (status 7); requeueing job 17\n")
    line = (
        f"mmldm: {cluster.run}: 3 starts in a row ended at 1,280 samples without a new checkpoint; job 17 is not "
        "requeued; see the job's log, fix the cause, submit a new job\n"
    )
    assert cluster.finish("exit 7", restart=2) == (7, line)
    assert cluster.finish("exit 7", restart=3) == (2, line)  # SLURM itself has requeued it: a node died
    assert cluster.requeues() == ["Incomplete 17"] * 2
    starts = [json.loads(text) for text in (cluster.run / requeue.STARTS).read_text().splitlines()]
    assert [(s["job"], s["restarts"], s["tasks"], s["samples_seen"]) for s in starts] == [
        ("17", restart, 16, 1280) for restart in range(3)
    ]
    (cluster.run / "hangs/2026-11-21T18-00-00").mkdir(parents=True)
    assert f"see the job's log and {cluster.run}/hangs/2026-11-21T18-00-00, fix" in cluster.finish("exit 7")[1]
    assert cluster.finish("exit 7", job="18")[0] == 7  # a new job
    assert cluster.requeues() == ["Incomplete 17"] * 2 + ["Incomplete 18"]


def test_errors_that_the_doctor_finds_end_a_job_unless_it_was_requeued_before(cluster: Cluster) -> None:
    """Then they may be those of a node that the job did not use at its first start."""
    training = 'case "$*" in *" doctor --quick --trainable dit "*) exit $DOCTOR_STATUS;; esac; echo trained >&2'
    ended = f"mmldm: {cluster.run}: not started because of the errors above; MMLDM_DOCTOR=off skips this check\n"
    requeued = f"mmldm: {cluster.run}: the training was not started because of the errors above; requeueing job 17\n"
    assert cluster.finish(training, doctor_status=0) == (0, "trained\n")
    assert cluster.finish(training, doctor_status=1) == (1, ended)
    assert cluster.finish(training, doctor_status=2) == (2, "")  # the user's mistake, which the doctor has printed
    assert cluster.requeues() == []
    assert cluster.finish(training, doctor_status=1, restart=1, job="18")[0] == 1
    assert cluster.finish(training, doctor_status=1, restart=1) == (1, requeued)
    assert cluster.requeues() == ["Incomplete 18", "Incomplete 17"]


def test_a_new_checkpoint_resets_the_count(cluster: Cluster) -> None:
    for restart in range(6):
        if restart % 2 == 0:
            cluster.save(1280 * (restart + 1))
        assert cluster.finish("exit 7", restart=restart)[0] == 7
    assert cluster.requeues() == ["Incomplete 17"] * 6


@pytest.mark.parametrize("status", [0, 2, 75, 130])
def test_final_statuses_are_not_requeued(cluster: Cluster, status: int) -> None:
    """srun's own exit status is that of a killed task, whatever the first task to end had."""
    training = "exit 0" if status == 0 else f"printf {status} > $MMLDM_EXIT_STATUS; exit 143"
    assert cluster.finish(training) == (status, "")
    assert cluster.requeues() == []
    assert [file.name for file in cluster.run.iterdir()] == [requeue.STARTS]


def test_a_failed_file_system_is_requeued(cluster: Cluster) -> None:
    assert cluster.finish(f"printf {Outage.status} > $MMLDM_EXIT_STATUS; exit 143")[0] == Outage.status
    assert cluster.requeues() == ["Incomplete 17"]


def terminate(cluster: Cluster, number: signal.Signals = signal.SIGTERM, under: str = "") -> tuple[int, str]:
    """Send the signal ``number`` while the training runs; return the exit status and the standard error."""
    training = 'trap "exit 9" TERM; touch $MMLDM_EXIT_STATUS.here; sleep 60 2> /dev/null & wait'
    process = cluster.start(training, under=under)
    deadline = time.monotonic() + 30
    while not list(cluster.run.glob("*.here")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    stderr = process.communicate(timeout=30)[1]
    return process.returncode, stderr


def test_at_its_time_limit_a_job_is_requeued(cluster: Cluster) -> None:
    cluster.time_limit()
    line = f"mmldm: {cluster.run}: the training reached the time limit; requeueing job 17\n"
    assert terminate(cluster) == (9, line)
    assert cluster.requeues() == ["Incomplete 17", "17"]


@pytest.mark.parametrize("refuses", [False, True])
def test_at_sigterm_the_tasks_of_srun_are_told_by_slurm_so_that_they_can_save(cluster: Cluster, refuses: bool) -> None:
    """srun itself kills them at SIGTERM; it receives that only if SLURM refuses."""
    cluster.keep_running()
    told = cluster.run / "told"
    cluster.add("scancel", "exit 1" if refuses else f'[ "$*" = "--signal=TERM 17" ] && touch {told}')
    wait = f"while [ ! -e {told} ]; do sleep 0.05; done; exit 9"
    cluster.add("srun", f"trap 'exit 3' TERM; touch $MMLDM_EXIT_STATUS.here; {wait}")
    assert terminate(cluster, under="srun") == (3 if refuses else 9, "")
    assert cluster.requeues() == []


def test_the_tasks_of_a_job_that_slurm_ends_are_not_told_since_the_signal_could_reach_its_next_start(
    cluster: Cluster,
) -> None:
    told = cluster.run / "told"
    cluster.add("scancel", f"touch {told}")
    cluster.add("srun", "trap 'exit 3' TERM; touch $MMLDM_EXIT_STATUS.here; sleep 60 2> /dev/null & wait")
    assert terminate(cluster, under="srun")[0] == 3
    assert not told.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_job_is_not_requeued(cluster: Cluster, number: signal.Signals) -> None:
    cluster.cancel()
    assert terminate(cluster, number) == (9, "")
    assert cluster.requeues() == []


def test_a_cancelled_job_whose_ranks_end_before_sigterm_arrives_stays_cancelled(cluster: Cluster) -> None:
    cluster.cancel()
    lines = (
        f"mmldm: {cluster.run}: the training failed (status 143); requeueing job 17\n"
        "mmldm: job 17 was cancelled and is not requeued\n"
    )
    assert cluster.finish("exit 143") == (143, lines)
    assert cluster.requeues() == ["Incomplete 17"]  # which SLURM ignores for a job that is not running


def test_outside_of_a_job_it_only_starts_the_training(cluster: Cluster) -> None:
    assert cluster.finish("exit 7", job="") == (7, "")
    assert not cluster.run.exists()


def test_a_mistake_is_one_line_before_anything_starts(cluster: Cluster) -> None:
    command = [sys.executable, "-c", PROGRAM, *TRAIN, "shards=data", "training.sed=1", "--under", "touch started"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cluster.run.parent)
    assert done.returncode == 2
    assert "sed" in done.stderr
    assert not (cluster.run.parent / "started").exists()
