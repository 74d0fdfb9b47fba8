"""Data preparation on the two nodes, as an array of a script and through submitit: the set that one process makes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.shard import main
from mmldm_scale.media.encode import write_video
from tests.support.tiny_models.saved_autoencoder import save_autoencoder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds that something may take on a busy machine
SOUND = ("media.audio.sample_rate=8000", "media.audio.n_mels=16", "media.audio.f_max=4000")
SMALL = ("media.frames=4", "media.size=16", *SOUND)
MANY = (*SMALL, "stride=2", "samples_per_shard=1")  # 87 clips: something to share
LAUNCH = """
import sys
from pathlib import Path
from data_tools.launching.launch import Options, launch
from mmldm_scale.common.errors import UserError
jobs, output, *command = sys.argv[1:]
try:
    sys.exit(launch(command, "slurm", int(jobs), Options(Path(output), ["cpus=1", "hours=1"])))
except UserError as error:
    sys.exit(f"shard.py: {error}")
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    time_axis = np.arange(48_000) / 8000
    for seed in range(3):
        frames = np.full((60, 32, 32, 3), 60 * seed, np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None, None]
        sound = 0.3 * np.sin(2 * np.pi * (300 + 50 * seed) * time_axis)
        write_video(folder / f"{seed}.mp4", frames, 10, sound.astype(np.float32), 8000)
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    """The clip set that one process makes."""
    output = tmp_path_factory.mktemp("sets") / "clips"
    assert main(["clips", "--input", str(videos), "--output", str(output), "--workers", "0", *MANY]) == 0
    return output


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


def submitted(two_nodes, jobs, output, *command):
    """Start the launcher, which submits, and follows the jobs; return it and the id of the array."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(jobs), str(output), *map(str, command)],
        cwd=ROOT,
        env=two_nodes.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = launcher.stdout.readline()
    assert line.startswith("job "), line + launcher.stderr.read()
    return launcher, int(line.split()[1].rstrip(":"))


def processes(task, *words):
    """Return the ids of the Python processes of array task ``task`` that have all ``words`` on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # gone, or the kernel's
            continue
        if b"python" in line[0] and f"SLURM_ARRAY_TASK_ID={task}".encode() in environment:
            found += [int(folder.name)] if {word.encode() for word in words} <= set(line) else []
    return found


def wait_for_shards(output, seconds=LIMIT):
    deadline = time.monotonic() + seconds
    while not list(output.glob("shard-*.json")):
        assert time.monotonic() < deadline, "no shard was made"
        time.sleep(0.02)


def test_an_array_of_the_script_shares_the_shards_and_one_task_may_be_lost(
    two_nodes, undisturbed, autoencoder, tmp_path
):
    one = tmp_path / "one"
    arguments = ["--input", undisturbed, "--autoencoder", autoencoder, "--workers", 0, "--batch-size", 1]
    assert main(["latents", *map(str, arguments), "--output", str(one)]) == 0
    array = tmp_path / "array"
    options = ("--array=0-1", "--exclusive", "--cpus-per-task=1")  # a node for each task
    job = two_nodes.submit("slurm/encode_latents.sh", *arguments, "--output", array, options=options, array=True)
    two_nodes.wait_until(lambda: list(array.glob("shard-*.json")), job, LIMIT)
    os.kill(min(processes(0, "latents", str(array))), signal.SIGKILL)
    two_nodes.wait(job, LIMIT)
    states = {task["ArrayTaskId"]: task["JobState"] for task in two_nodes.tasks(job)}
    assert states["1"] == "COMPLETED", two_nodes.output(job)
    assert states["0"] != "COMPLETED"
    assert contents(array) == contents(one)


def test_jobs_through_submitit_make_the_same_set_though_two_of_three_are_killed(
    two_nodes, videos, undisturbed, tmp_path
):
    output = tmp_path / "set"
    launcher, job = submitted(two_nodes, 3, output, "clips", "--input", videos, "--output", output, *MANY)
    wait_for_shards(output)
    # The oldest of those found: a process that is just starting another one is there twice.
    os.kill(min(processes(0, "clips", str(output))), signal.SIGKILL)  # the command; its job lives to tell
    os.kill(min(processes(1, "submitit.core._submit", f"{output}-jobs")), signal.SIGKILL)  # the job itself
    out, err = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 0, err
    assert contents(output) == contents(undisturbed)
    assert err.count(f"job {job}_0 was killed") == err.count(f"job {job}_1 was killed") == 1
    assert out.count("87 clips in ") == 1
    assert "cutting:" in err
    assert not processes(1, "clips", str(output))


def test_an_interrupted_job_is_queued_again_and_carries_on(two_nodes, videos, undisturbed, tmp_path):
    output = tmp_path / "set"
    launcher, job = submitted(two_nodes, 1, output, "clips", "--input", videos, "--output", output, *MANY)
    wait_for_shards(output)
    two_nodes.run("scancel", "--signal=USR2", str(job))
    two_nodes.restart(job, 30)
    _, err = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 0, err
    assert two_nodes.tasks(job)[0]["Restarts"] == "1"
    assert contents(output) == contents(undisturbed)


def test_a_mistake_is_shown_once_and_ends_all(two_nodes, videos, tmp_path):
    output = tmp_path / "set"
    launcher, job = submitted(two_nodes, 3, output, "clips", "--input", videos, "--output", output, "strid=1")
    _, err = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 2
    assert err.count("unknown key; did you mean 'stride'") == 1
    assert "the others are cancelled; its log is" in err
    assert two_nodes.wait(job, 30).state != "COMPLETED"


def test_what_slurm_refuses_is_one_line(two_nodes, videos, tmp_path):
    code = LAUNCH.replace('"hours=1"', '"partition=nowhere"')
    done = subprocess.run(
        [sys.executable, "-c", code, "2", str(tmp_path / "set"), "clips", "--input", str(videos)],
        cwd=ROOT,
        env=two_nodes.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "SLURM refuses the jobs: sbatch: error: Batch job submission failed: Invalid partition" in done.stderr
