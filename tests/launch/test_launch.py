"""What ``mmldm launch`` does before SLURM comes into it: sweeps, configurations, and mistakes as one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmldm_scale import config
from mmldm_scale.cli import main
from mmldm_scale.cluster import code_snapshot
from mmldm_scale.cluster.submit import read_request
from mmldm_scale.common.errors import UserError
from mmldm_scale.launch.launch import FirstProcess, TrainingRequest
from mmldm_scale.launch.sweep import compose
from mmldm_scale.trainables.dit.config import DiTTraining
from tests.support.datasets.latent_sets import write_latents

MODEL = ("model.depth=1",)  # a configuration of no preset


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("sets") / "latents", (4,))


def test_without_a_sweep_there_is_one_run_with_the_composed_configuration(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {depth: 3}\n")
    overrides = ["shards=x", f"run={tmp_path}/run", "training.seed=7"]
    base, (run,) = compose("dit", [str(tmp_path / "a.yaml")], overrides, [])
    assert base == Path(run.schema.run) == tmp_path / "run"
    assert run.name == ""
    assert run.schema == config.load(DiTTraining, [tmp_path / "a.yaml"], overrides)


def test_a_sweep_is_every_combination_each_with_a_folder_of_its_own():
    sweeps = ["training.learning_rate=1e-4,3e-4", "training.seed=0,1"]
    base, runs = compose("dit", [], ["shards=x", "run=runs/sweep", "training.seed=9"], sweeps)
    assert base == Path("runs/sweep")
    found = {run.schema.run: (run.schema.training.learning_rate, run.schema.training.seed) for run in runs}
    assert found == {
        f"runs/sweep/learning_rate={rate},seed={seed}": (float(rate), seed)
        for rate in ("1e-4", "3e-4")
        for seed in (0, 1)
    }
    assert runs[1].values == {"training.learning_rate": "1e-4", "training.seed": "1"}


@pytest.mark.parametrize(
    ("sweeps", "names"),
    [
        (["training.betas=[0.9,0.99],[0.9,0.999]"], ["betas=-0.9,0.99-", "betas=-0.9,0.999-"]),
        (["shards=data/a,../b"], ["shards=data-a", "shards=..-b"]),
        (["weights=[]", "training.seed=1"], ["weights=-,seed=1"]),
        (
            ["adversarial.learning_rate=1e-4", "training.learning_rate=2e-4"],
            ["adversarial.learning_rate=1e-4,training.learning_rate=2e-4"],
        ),
    ],
)
def test_a_combinations_name_is_that_of_one_folder(sweeps, names):
    base, runs = compose("kl_vae", [], ["shards=x", "run=runs/sweep"], sweeps)
    assert [Path(run.schema.run).relative_to(base).parts for run in runs] == [(name,) for name in names]


@pytest.mark.parametrize(
    ("sweeps", "complaint"),
    [
        (["training.sed=0,1"], "unknown key; did you mean 'seed'"),
        (["training.seed=0,x"], "training.seed=x"),
        (["training.seed=0,0,1"], "two combinations are named seed=0"),
        (["training.seed=0", "training.seed=1"], "each key at most once"),
        (["run=a,b"], "not run"),
        (["training.seed"], "must have the form key=value,value"),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused(sweeps, complaint):
    with pytest.raises(UserError, match=complaint):
        compose("dit", [], ["shards=x"], sweeps)


def test_a_request_is_put_together_from_a_file_and_single_settings(tmp_path):
    (tmp_path / "gpu.yaml").write_text("partition: gpu\nhours: 2\ncpus: 4\n")
    ask = read_request(TrainingRequest, [str(tmp_path / "gpu.yaml"), "cpus=6", "nodes=2", "gpus=8"])
    assert (ask.partition, ask.hours, ask.cpus, ask.nodes, ask.tasks_per_node()) == ("gpu", 2.0, 6, 2, 8)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nodes", "0", "--tasks-per-node", "1"], "nodes: 0; must be at least 1"),
        (["--gpus-per-node", "-1"], "gpus: -1; must be at least 0"),
        ([], "give either --gpus-per-node N"),
        (["--gpus-per-node", "8", "--tasks-per-node", "8"], "give either --gpus-per-node N"),
        (["--gpus-per-node", "8", "--slurm", "partitio=x"], "did you mean 'partition'"),
        (["--gpus-per-node", "8", "--slurm", "hours=0.01"], "grace: 120 seconds must be less than hours = 0.01"),
        (["--gpus-per-node", "8", "model.dept=3"], "did you mean 'depth'"),
        (["--gpus-per-node", "8", "--config", "no.yaml"], "no.yaml: no such configuration file"),
        (["--gpus-per-node", "8", "shards=nowhere"], "nowhere: no such folder"),
        (["--nodes", "3", "--gpus-per-node", "1"], "times 3 processes; it must be a multiple of 3"),
        (["--gpus-per-node", "8"], "sbatch: not found on PATH"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(latents, arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    shards = [] if any(text.startswith("shards=") for text in arguments) else [f"shards={latents}"]
    assert main(["launch", "train", "dit", *arguments, *shards, "run=run", *MODEL]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("mmldm: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_wrong_kind_of_shards_is_refused(latents, capsys, tmp_path):
    arguments = ["launch", "train", "autoencoder", "--gpus-per-node", "1", "kl_vae=x"]
    assert main([*arguments, f"shards={latents}", f"run={tmp_path}/run"]) == 2
    assert "contains latents, but clips are required" in capsys.readouterr().err


def test_the_job_gets_the_environment_of_the_shell_and_the_user_a_few_lines(latents, tmp_path):
    for name in ("sbatch", "srun", "squeue", "scancel"):  # stand-ins: nothing is started
        (tmp_path / name).write_text(f"#!/bin/sh\nenv > {tmp_path}/{name}.env\necho Submitted batch job 4711\n")
        (tmp_path / name).chmod(0o755)
    arguments = ["launch", "train", "dit", "--gpus-per-node", "2", f"shards={latents}", f"run={tmp_path}/run", *MODEL]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, "-m", "mmldm_scale.cli", *arguments],
        env=environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "DS_ACCELERATOR" not in (tmp_path / "sbatch.env").read_text()  # there is no GPU here, but may be there
    folder = tmp_path / "run/launch-1"
    assert "job 4711: mmldm train dit on 1 × 2 tasks\n" in done.stdout
    assert f"tail -F {folder}/4711_*_log.out\n" in done.stdout
    assert config.load(DiTTraining, [folder / "config.yaml"]).run == str(tmp_path / "run")


def test_the_first_process_of_a_job_runs_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["submitit"])
    FirstProcess(("train", "dit", "--print-config"))()
    assert "trainable: dit" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        FirstProcess(("train", "dit", "model.dept=3"))()


def test_a_snapshot_is_the_package_that_runs_here(tmp_path):
    code = code_snapshot.take(tmp_path / "code")
    imports = "from mmldm_scale import cli; from mmldm_scale.cluster.code_snapshot import origin"
    say = f"{imports}; print(cli.__file__, origin())"
    environment = {"PYTHONPATH": str(code.folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", say], cwd=code_snapshot.PACKAGE.parent, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{code.folder}/mmldm_scale/cli.py {code.origin}\n"
    copied, original = code.folder / "mmldm_scale", code_snapshot.PACKAGE
    for pattern in ("*.py", "*.yaml"):
        files = {file.relative_to(copied) for file in copied.rglob(pattern)}
        assert files == {file.relative_to(original) for file in original.rglob(pattern)} != set()
    assert (code.folder / "origin.txt").read_text().splitlines()[0] == code.origin


def test_status_knows_a_launch_while_its_jobs_wait(latents, tmp_path, monkeypatch, capsys):
    stand_ins = {
        "sbatch": "echo Submitted batch job 4711",
        "squeue": "printf '4711_0|PENDING||Priority\\n4711_1|RUNNING|n2|None\\n'",
        "srun": "",
        "scancel": "",
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sweep, request = ["--sweep", "training.seed=0,1"], ["--tasks-per-node", "1", f"shards={latents}"]
    assert main(["launch", "train", "dit", *request, *sweep, *MODEL, f"run={tmp_path}/runs/sweep"]) == 0
    capsys.readouterr()
    assert main(["status", str(tmp_path / "runs")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        [f"{tmp_path}/runs/sweep/seed=0", "waiting"],
        [f"{tmp_path}/runs/sweep/seed=1", "starting"],
    ]
    assert main(["status", str(tmp_path / "runs/sweep/seed=1")]) == 0
    assert "  state        starting, SLURM job 4711_1 is RUNNING on n2, submitted " in capsys.readouterr().out
