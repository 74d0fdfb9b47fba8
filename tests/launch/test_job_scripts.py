"""The job scripts outside of a job: ``--check`` runs the job's command here, without SLURM."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = {
    "train_dit_S": "mmldm train dit --under srun --kill-on-bad-exit=1 --config {project}/configs/dit/S.yaml",
    "train_dit_B": "mmldm train dit --under srun --kill-on-bad-exit=1 --config {project}/configs/dit/B.yaml",
    "train_dit_L": "mmldm train dit --under srun --kill-on-bad-exit=1 --config {project}/configs/dit/L.yaml",
    "train_autoencoder": "mmldm train autoencoder --under srun --kill-on-bad-exit=1",
    "train_kl_vae": "mmldm train kl_vae --under srun --kill-on-bad-exit=1 "
    "--config {project}/configs/kl_vae/finetune.yaml",
    "train_decoder_distil": "mmldm train decoder-distil --under srun --kill-on-bad-exit=1",
    "ablation": "mmldm ablation --under srun --kill-on-bad-exit=1",
    "encode_latents": "python {project}/data_tools/shard.py latents",
    "sample": "mmldm sample",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder whose programs only print how they were called."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f"PATH={folder}/.venv/bin:$PATH\n")
    for name in ("mmldm", "python"):
        program = folder / ".venv/bin" / name
        program.write_text(f'#!/bin/sh\necho "started: {name} $*"\n')
        program.chmod(0o755)
    return folder


def run(folder: Path, *command: str) -> tuple[int, str, str]:
    """Run ``command`` in ``folder`` outside of any job; return its status, output and errors."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", CHECKED)
def test_with_check_a_script_runs_its_command_here(project: Path, tmp_path: Path, name: str) -> None:
    status, printed, errors = run(tmp_path, "bash", str(project / f"slurm/{name}.sh"), "shards=a b", "--check")
    assert (status, errors) == (0, "")
    started = [line for line in printed.splitlines() if line.startswith("started: ")]
    assert started == [f"started: {CHECKED[name].format(project=project)} shards=a b --check"]


def test_without_it_nothing_starts_outside_of_a_job(project: Path) -> None:
    status, printed, errors = run(project / "slurm", "bash", "sample.sh", "--task", "svg")
    assert (status, printed) == (2, "")
    assert (
        errors
        == "slurm/prologue.sh: no SLURM job; submit the script with sbatch, or give --check to check its inputs\n"
    )


def test_the_tasks_may_run_in_a_container(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    prologue = tmp_path / "project/slurm/prologue.sh"
    text = prologue.read_text()
    for line in ("launcher+=(apptainer exec", "inside=mmldm"):
        assert f"\n# {line}" in text
        text = text.replace(f"\n# {line}", f"\n{line}")
    prologue.write_text(text)
    _, printed, _ = run(tmp_path, "bash", "project/slurm/train_dit_S.sh", "--check")
    launcher = f"srun --kill-on-bad-exit=1 apptainer exec --nv --bind {tmp_path}/project\\,{tmp_path} --pwd {tmp_path}"
    assert f"--under {launcher} {tmp_path}/project/mmldm.sif mmldm --config" in printed
