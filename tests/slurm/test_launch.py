"""``mmldm launch`` on the two nodes: it saves, queues up again and carries on, on the code it was launched with."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from mmldm_scale.cli import main
from tests.support.datasets.latent_sets import write_latents
from tests.support.run_results import assert_same_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds that a job may take on a busy machine
LENGTH, BATCH = 800, 4  # samples: 200 steps, some seconds
CONFIG = f"""
model: {{depth: 1, width: 16, heads: 2, context_tokens: 2, context_width: 4}}
training: {{total_samples: {LENGTH}, global_batch: {BATCH}, micro_batch: 2, precision: fp32, workers: 1,
           log_every: 40, checkpoint_every: {LENGTH}, preview_every: {LENGTH}, ema_lengths: [0.1]}}
"""
LAST = f"checkpoints/step-{LENGTH:012}"
SETTINGS = ("--config", "tiny.yaml", "shards=latents")
LAUNCH = ("launch", "train", "dit", "--slurm", "cpus=1", *SETTINGS)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of its own, with a shard set and a configuration in it, that a test may edit."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("mmldm_scale", "slurm"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    write_latents(folder / "latents", (10, 10))
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def undisturbed(forks, project):
    """The run that nothing happened to, by two processes without SLURM."""
    status, said = forks(2, "command", str(project), "mmldm", "train", "dit", *SETTINGS, "run=runs/undisturbed")
    assert status == 0, said
    return project / "runs/undisturbed"


@dataclass(frozen=True)
class Signalled:
    """A run with a GPU on each of the two nodes that was signalled, and whose tree was away from its start on."""

    run: Path
    printed: str
    restarts: str


@pytest.fixture(scope="module")
def signalled(cluster, project) -> Signalled:
    tree = project / "mmldm_scale/training"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmldm_scale.cli",
            *LAUNCH,
            "--nodes",
            "2",
            "--gpus-per-node",
            "1",
            "run=runs/signalled",
        ],
        cwd=project,
        env=cluster.env | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    job, run = job_id(done.stdout), project / "runs/signalled"
    try:
        tree.rename(project / "away")  # what is imported from here on fails
        cluster.wait_until(lambda: trains(run), job, LIMIT)
        cluster.run("scancel", "--signal=USR2", str(job))  # what --signal=USR2@120 sends
        cluster.restart(job, 60)
        result = cluster.wait(job, LIMIT)
    finally:
        (project / "away").rename(tree)
    assert result.state == "COMPLETED", result.output
    return Signalled(run, done.stdout, cluster.tasks(job)[0]["Restarts"])


@pytest.fixture
def launch(two_nodes, project, monkeypatch, capsys):
    """Launch with further arguments from the project's folder, in this process; return status, output and errors."""

    def launch(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project)
        with mock.patch.dict(os.environ, two_nodes.env, clear=True):
            status = main([*LAUNCH, *arguments])
        return status, *capsys.readouterr()

    return launch


def job_id(printed):
    return int(printed.split()[1].rstrip(":"))


def trains(run):
    log = run / "log.jsonl"
    return log.exists() and log.stat().st_size > 0


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len({record["samples_seen"] for record in records}) == len(records)  # no step twice
    return {record["samples_seen"]: record["loss"] for record in records}


def test_a_run_is_launched_with_all_that_it_needs_in_its_folder(signalled):
    launch = signalled.run / "launch-1"
    assert (launch / "config.yaml").read_text() == (signalled.run / "config.yaml").read_text()
    assert json.loads((launch / "jobs.json").read_text()) == {"": str(job_id(signalled.printed))}
    assert (launch / "code/mmldm_scale/cluster/submit.py").is_file()
    script = next(launch.glob("*_submission.sh")).read_text()
    for line in ("nodes=2", "gpus-per-node=1", "ntasks-per-node=1", "signal=USR2@120", "requeue", "time=1440"):
        assert f"#SBATCH --{line}\n" in script


def test_signalled_it_saves_queues_up_again_once_and_carries_on_whatever_becomes_of_the_tree(signalled, undisturbed):
    assert signalled.restarts == "1"
    followed = Path(signalled.printed.split("tail -F ")[1].splitlines()[0])
    (log,) = followed.parent.glob(followed.name)
    text = log.read_text()
    assert text.count("after SIGUSR2; saved") == text.count("resuming from") == 1
    assert "the training failed" not in text
    assert losses(undisturbed).keys() == {4, *range(40, LENGTH + 1, 40)}  # the first step, and each interval
    assert losses(signalled.run).items() >= losses(undisturbed).items()  # and where it stopped
    assert_same_checkpoint(signalled.run / LAST, undisturbed / LAST, ("engine",))
    one, other = (run / LAST / "weights/model.safetensors" for run in (signalled.run, undisturbed))
    assert one.read_bytes() == other.read_bytes()


def test_of_a_sweep_only_the_signalled_run_is_queued_again(two_nodes, launch, undisturbed, project):
    status, printed, _ = launch("--tasks-per-node", "1", "--sweep", "training.seed=0,1", "run=runs/sweep")
    assert status == 0
    job, runs = job_id(printed), [project / f"runs/sweep/seed={seed}" for seed in (0, 1)]
    two_nodes.wait_until(lambda: len(two_nodes.tasks(job)) == 2, job, 60)
    signalled = next(task for task in two_nodes.tasks(job) if task["JobId"] == str(job))["ArrayTaskId"]
    two_nodes.wait_until(lambda: trains(runs[int(signalled)]), job, LIMIT)
    two_nodes.run("scancel", "--signal=USR2", f"{job}_{signalled}")  # the one whose id is that of the whole array
    two_nodes.restart(f"{job}_{signalled}", 60)
    result = two_nodes.wait(job, LIMIT)
    assert result.state == "COMPLETED", result.output
    restarts = {task["ArrayTaskId"]: task["Restarts"] for task in two_nodes.tasks(job)}
    assert restarts == {number: "1" if number == signalled else "0" for number in ("0", "1")}
    for seed, run in enumerate(runs):
        found = losses(run)
        same = [found[seen] == pytest.approx(loss, rel=0.01) for seen, loss in losses(undisturbed).items()]
        assert all(same) == (seed == 0)  # as of two processes
    table = [line.split() for line in printed.splitlines()[1:4]]
    assert table == [["task", "training.seed", "run"], *([f"{n}", f"{n}", f"runs/sweep/seed={n}"] for n in (0, 1))]


def test_another_configuration_for_a_run_is_refused_before_anything_is_submitted(launch, undisturbed):
    status, _, error = launch("--nodes", "2", "--gpus-per-node", "1", "run=runs/undisturbed", "training.seed=5")
    assert status == 2
    assert "the run was started with training.seed=0, not 5" in error
    assert not list(undisturbed.glob("launch-*"))


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(launch, project):
    status, _, error = launch("--tasks-per-node", "1", "--slurm", "partition=nowhere", "run=runs/refused")
    assert status == 2
    assert error.count("\n") == 1
    assert "SLURM refuses the jobs: sbatch: error: Batch job submission failed: Invalid partition" in error
    assert not (project / "runs/refused").exists()
