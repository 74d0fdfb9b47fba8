"""``mmldm launch`` on the two nodes: it saves, queues up again and carries on, on the code it was launched with."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.harness import assert_same_checkpoint
from tests.training.latent_sets import write_latents

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds that a job may take on a busy machine
LENGTH, BATCH = 1_200, 4  # samples: 300 steps, some seconds
CONFIG = f"""
model: {{depth: 1, width: 16, heads: 2, context_tokens: 2, context_width: 4}}
training: {{total_samples: {LENGTH}, global_batch: {BATCH}, micro_batch: 2, precision: fp32, workers: 0,
           log_every: 40, checkpoint_every: {LENGTH}, preview_every: {LENGTH}, ema_lengths: [0.1]}}
"""
LAST = f"checkpoints/step-{LENGTH:012}"


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
def launch(cluster, project):
    """Launch with further arguments from the project's folder; return the job's id and what was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        done = launched(cluster, project, *arguments)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[1].rstrip(":")), done.stdout

    return run


def launched(cluster, project, *arguments):
    command = [sys.executable, "-m", "mmldm_scale.cli", "launch", "train", "dit", "--slurm", "cpus=1"]
    return subprocess.run(
        [*command, "--config", "tiny.yaml", "shards=latents", *arguments],
        cwd=project,
        env=cluster.env | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def undisturbed(cluster, launch, project):
    """The run that nothing happened to: one task with a GPU on each of the two nodes."""
    job, _ = launch("--nodes", "2", "--gpus-per-node", "1", "run=runs/undisturbed")
    result = cluster.wait(job, LIMIT)
    assert result.state == "COMPLETED", result.output
    return project / "runs/undisturbed"


def trains(run):
    log = run / "log.jsonl"
    return log.exists() and log.stat().st_size > 0


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len({record["samples_seen"] for record in records}) == len(records)  # no step twice
    return {record["samples_seen"]: record["loss"] for record in records}


def process_of_rank(rank, job):
    """Return the id of the process that srun started as task ``rank`` of ``job``."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURM_STEP_ID=0"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # gone, or the kernel's
            continue
        if b"mmldm_scale.cli" in command and wanted <= set(environment):
            return int(folder.name)
    raise AssertionError(f"no task {rank} of job {job}")


def test_a_run_is_launched_with_all_that_it_needs_in_its_folder(two_nodes, undisturbed):
    assert losses(undisturbed).keys() == set(range(40, LENGTH + 1, 40))
    launch = undisturbed / "launch-1"
    assert (launch / "config.yaml").read_text() == (undisturbed / "config.yaml").read_text()
    assert (launch / "code/mmldm_scale/cluster/launch.py").is_file()
    script = next(launch.glob("*_submission.sh")).read_text()
    for line in ("nodes=2", "gpus-per-node=1", "ntasks-per-node=1", "signal=USR2@120", "requeue", "time=1440"):
        assert f"#SBATCH --{line}\n" in script


def test_signalled_it_saves_queues_up_again_and_carries_on_whatever_becomes_of_the_tree(
    two_nodes, launch, undisturbed, project
):
    job, printed = launch("--nodes", "2", "--tasks-per-node", "1", "run=runs/signalled")
    run = project / "runs/signalled"
    tree = project / "mmldm_scale/training"
    try:
        tree.rename(project / "away")  # what is imported from here on fails
        two_nodes.wait_until(lambda: trains(run), job, LIMIT)
        two_nodes.run("scancel", "--signal=USR2", str(job))  # what --signal=USR2@120 sends
        two_nodes.restart(job, 60)
        result = two_nodes.wait(job, LIMIT)
    finally:
        (project / "away").rename(tree)
    assert result.state == "COMPLETED", result.output
    assert two_nodes.tasks(job)[0]["Restarts"] == "1"
    followed = Path(printed.split("tail -F ")[1].splitlines()[0])
    (log,) = followed.parent.glob(followed.name)
    text = log.read_text()
    assert text.count("after SIGUSR2; saved") == text.count("carrying on from") == 1
    assert losses(run).items() >= losses(undisturbed).items()  # and where it stopped
    assert_same_checkpoint(run / LAST, undisturbed / LAST, ("engine", "weights"))


def test_of_a_sweep_only_the_signalled_run_is_queued_again(two_nodes, launch, undisturbed, project):
    job, printed = launch("--tasks-per-node", "2", "--sweep", "training.seed=0,1", "run=runs/sweep")
    runs = [project / f"runs/sweep/seed={seed}" for seed in (0, 1)]
    two_nodes.wait_until(lambda: all(map(trains, runs)), job, LIMIT)
    signalled = next(task for task in two_nodes.tasks(job) if task["JobId"] == str(job))["ArrayTaskId"]
    two_nodes.run("scancel", "--signal=USR2", f"{job}_{signalled}")  # the one whose id is that of the whole array
    two_nodes.restart(f"{job}_{signalled}", 60)
    result = two_nodes.wait(job, LIMIT)
    assert result.state == "COMPLETED", result.output
    restarts = {task["ArrayTaskId"]: task["Restarts"] for task in two_nodes.tasks(job)}
    assert restarts == {number: "1" if number == signalled else "0" for number in ("0", "1")}
    assert [losses(run).items() >= losses(undisturbed).items() for run in runs] == [True, False]
    table = [line.split() for line in printed.splitlines()[1:4]]
    assert table == [["task", "training.seed", "run"], *([f"{n}", f"{n}", f"runs/sweep/seed={n}"] for n in (0, 1))]


def test_another_configuration_for_a_run_is_refused_before_anything_is_submitted(two_nodes, undisturbed, project):
    arguments = ("--nodes", "2", "--gpus-per-node", "1", "run=runs/undisturbed", "training.seed=5")
    done = launched(two_nodes, project, *arguments)
    assert done.returncode == 2
    assert "the run was begun with training.seed=0, now 5" in done.stderr
    assert not (undisturbed / "launch-2").exists()


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(two_nodes, project):
    done = launched(two_nodes, project, "--tasks-per-node", "1", "--slurm", "partition=nowhere", "run=runs/refused")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "SLURM refuses the jobs: sbatch: error: Batch job submission failed: Invalid partition" in done.stderr
    assert not (project / "runs/refused").exists()
