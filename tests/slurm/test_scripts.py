"""The scripts that users submit, as they are: what they ask of a cluster, and what they start."""

import os
import shutil
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
LAUNCH = "--under srun --kill-on-bad-exit=1"
CONFIGS = "--config {project}/configs"
# script: nodes, GPUs a node = tasks a node, array tasks, the command it starts
SCRIPTS = {
    "train_dit_S": (1, 8, 1, f"mmldm train dit {LAUNCH} {CONFIGS}/dit/S.yaml"),
    "train_dit_B": (2, 8, 1, f"mmldm train dit {LAUNCH} {CONFIGS}/dit/B.yaml"),
    "train_dit_L": (2, 8, 1, f"mmldm train dit {LAUNCH} {CONFIGS}/dit/L.yaml"),
    "train_autoencoder": (1, 8, 1, f"mmldm train autoencoder {LAUNCH}"),
    "train_kl_vae": (1, 8, 1, f"mmldm train kl_vae {LAUNCH} {CONFIGS}/kl_vae/finetune.yaml"),
    "train_decoder_distil": (1, 8, 1, f"mmldm train decoder-distil {LAUNCH}"),
    "ablation": (1, 8, 1, f"mmldm ablation {LAUNCH}"),
    "encode_latents": (1, 1, 1, "python {project}/data_tools/shard.py latents"),
    "sample": (1, 1, 8, "mmldm sample"),
    "evaluate": (1, 1, 4, "mmldm evaluate"),
    "evaluate_run": (1, 1, 1, "mmldm evaluate-run --watch"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder with the scripts and an environment whose programs only say how they were called."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    venv.create(folder / ".venv")
    for name in ("mmldm", "python"):
        program = folder / ".venv/bin" / name
        program.unlink(missing_ok=True)
        program.write_text(
            f'#!/bin/sh\necho "started: {name} $*, $OMP_NUM_THREADS of $SLURM_CPUS_PER_TASK"\n'
            'echo "in $PWD"\n[ "$1" != "$FAILS" ]\n'
        )
        program.chmod(0o755)
    return folder


def test_every_script_is_tried():
    assert {script.stem for script in (ROOT / "slurm").glob("*.sh")} == {*SCRIPTS, "prologue"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_asks_for_its_nodes_and_starts_its_tasks(two_nodes, project, name):
    nodes, gpus, array, command = SCRIPTS[name]
    options = ("--export=ALL,MMLDM_DOCTOR=on",)
    job = two_nodes.submit(f"slurm/{name}.sh", "key=a b", "--flag", options=options, array=array > 1, cwd=project)
    result = two_nodes.wait(job, 30)
    assert result.state == "COMPLETED", result.output
    tasks = two_nodes.tasks(job)
    assert len(tasks) == array
    for task in tasks:
        assert task["JobName"] == name
        assert task["Features"] == "(null)"  # a constraint is the user's
        assert task["NumNodes"] == str(nodes)
        assert task["TresPerNode"] == f"gres:gpu:{gpus}"
        assert task["Requeue"] == "1"
    started = [line for line in result.output.splitlines() if line.startswith("started")]
    times = 1 if LAUNCH in command else nodes * gpus * array  # it starts its tasks itself
    begun = f"started: {command.format(project=project)} key=a b --flag, 1 of 8"
    first = (
        [] if command.startswith("mmldm train") else ["started: mmldm doctor --quick, 1 of 8"] * nodes * gpus * array
    )
    assert sorted(started) == sorted([*first, *[begun] * times])
    assert array > 1 or started.index(begun) == len(first)  # it comes after all ranks were looked at
    assert result.output.count(f"({name}") == array  # the prologue's line of facts
    announced = 0 if command.startswith("mmldm train") else array  # a training prints its command itself
    assert result.output.count("; command: ") == result.output.count(r"key=a\ b --flag") == announced


def test_from_another_folder_the_project_is_found_and_paths_are_the_folders(two_nodes, project, tmp_path):
    options = ("--constraint=v100", "--cpus-per-task=5", "--nodes=1")
    script = os.path.relpath(project / "slurm/train_dit_L.sh", tmp_path)
    job = two_nodes.submit(script, "--config", "mine.yaml", options=options, cwd=tmp_path)
    result = two_nodes.wait(job, 30)
    assert two_nodes.tasks(job)[0]["Features"] == "v100"
    assert f"--config {project}/configs/dit/L.yaml --config mine.yaml, 1 of 5\nin {tmp_path}\n" in result.output


def test_of_a_script_with_a_blank_in_its_path_or_of_a_copy_the_folder_of_submission_tells_the_project(
    two_nodes, project, tmp_path
):
    other = tmp_path / "my project"
    other.mkdir()
    for name in ("slurm", ".venv"):
        (other / name).symlink_to(project / name)
    job = two_nodes.submit(other / "slurm/train_dit_S.sh", options=("--array=0",), array=True, cwd=other)
    result = two_nodes.wait(job, 30)
    assert f"--config {other}/configs/dit/S.yaml, 1 of 8\n" in result.output


def test_a_copy_without_a_project_says_where_it_looked(two_nodes, tmp_path):
    shutil.copy(ROOT / "slurm/sample.sh", tmp_path)
    result = two_nodes.wait(two_nodes.submit("sample.sh", options=("--array=0",), cwd=tmp_path), 30)
    assert result.state == "FAILED"
    assert f"{tmp_path}/slurm/prologue.sh: No such file" in result.output


def test_without_mmldm_the_job_says_what_to_install(two_nodes, project, tmp_path):
    shutil.copytree(project / "slurm", tmp_path / "slurm")
    options = ("--array=0", "--export=SLURM_CONF,PATH=/usr/bin:/bin")
    result = two_nodes.wait(two_nodes.submit("slurm/sample.sh", options=options, cwd=tmp_path), 30)
    assert result.state == "FAILED"
    assert f"no mmldm in {tmp_path}/.venv, in {tmp_path}/.venv nor on PATH" in result.output


def test_errors_that_the_doctor_finds_end_a_job_before_it_starts(two_nodes, project):
    options = ("--export=ALL,MMLDM_DOCTOR=on,FAILS=doctor", "--array=0")
    job = two_nodes.submit("slurm/sample.sh", options=options, cwd=project)
    result = two_nodes.wait(job, 30)
    assert (result.state, result.exit_code) == ("FAILED", 1)
    assert two_nodes.tasks(job)[0]["Restarts"] == "0"
    assert "not started because of the errors above" in result.output
    assert "started: mmldm sample" not in result.output
