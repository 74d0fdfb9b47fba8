"""``mmldm train`` before any training: what is missing is found at once, ``--check`` ends there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmldm_scale.cli import main
from mmldm_scale.common.leases import Leases
from tests.support.datasets.latent_sets import write_latents


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("sets") / "latents", (4, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with what stands for weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd15/vae").mkdir(parents=True)
    (tmp_path / "sd15/vae/config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "vgg16.pth").write_bytes(b"12345")
    (tmp_path / "run/checkpoints/step-000000000064").mkdir(parents=True)
    return tmp_path


def test_a_check_loads_no_torch_and_makes_no_run_folder(latents: Path, tmp_path: Path) -> None:
    show = "import sys; from mmldm_scale.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = ["train", "dit", "--preset", "demo", "--check", f"shards={latents}", "run=run", f"validation={latents}"]
    done = subprocess.run([sys.executable, "-c", show, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "run: mmldm train dit starts from 0 samples, with",
        f"   shards={latents}: 7 latents in 2 shards",
        f"   validation={latents}: 7 latents in 2 shards",
        "not checked: how the batch divides over the processes, GPUs, memory, disk and the files' contents, which the "
        "job's doctor and the start check",
        "0 False",
    ]
    assert not (tmp_path / "run").exists()


def test_a_check_names_who_trains_the_run_now(latents: Path, folder: Path, capsys) -> None:
    check = ["train", "dit", "--preset", "demo", "--check", f"shards={latents}", "run=new"]
    assert main(check) == 0
    assert "is training" not in capsys.readouterr().out
    with Leases(folder / "new") as held:
        assert held.take("run")
        assert main(check) == 0
    assert f"   process {os.getpid()} on {socket.gethostname()} is training this run now; " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trainable", "settings", "complaint"),
    [
        ("dit", ["shards=nowhere"], "nowhere: no such folder; expected a finished shard set"),
        ("dit", ["validation=nowhere"], "nowhere: no such folder"),
        ("autoencoder", ["kl_vae=sd15"], "contains latents, but clips are required"),
        ("dit", ["init=nowhere"], "init=nowhere: no such file or folder\n"),
        (
            "dit",
            ["init=empty"],
            "init=empty: holds no weights; must hold config.json or weights/config.json or checkpoints",
        ),
        (
            "dit",
            ["init=weights/dit_S"],
            "weights/dit_S: no such file or folder; mmldm doctor --weights prints the command",
        ),
        (
            "dit",
            ["context.kind=text", "context.embeddings=empty"],
            "embeddings=empty: holds no weights; must be a file",
        ),
    ],
)
def test_what_is_missing_is_one_line(latents, folder, capsys, trainable, settings, complaint) -> None:
    shards = [] if settings[0].startswith("shards") else [f"shards={latents}"]
    for option in (["--check"], ["--processes", "2"], ["--under", "false"], []):
        assert main(["train", trainable, "--preset", "demo", *option, *shards, "run=new", *settings]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
    assert not (folder / "new").exists()


def test_all_that_is_missing_is_said_at_once(folder, capsys) -> None:
    missing = ["shards=nowhere", "kl_vae=vae", "unet=empty"]
    assert main(["train", "autoencoder", "--preset", "landscape", "--check", *missing, "run=new"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "mmldm: nowhere: no such folder; expected a finished shard set (made by data_tools/shard.py)",
        "mmldm: kl_vae=vae: no such file or folder",
        "mmldm: unet=empty: holds no weights; must hold config.json or unet/config.json or checkpoints",
    ]


def test_a_truncated_tar_is_found_without_reading(latents, tmp_path, capsys) -> None:
    copy = write_latents(tmp_path / "latents", (4, 3))
    with (copy / "shard-000001.tar").open("r+b") as tar:
        tar.truncate(1024)
    assert main(["train", "dit", "--preset", "demo", "--check", f"shards={copy}", f"run={tmp_path}/run"]) == 2
    assert "shard-000001.tar: " in (error := capsys.readouterr().err)
    assert "bytes expected, 1,024 found; the file is damaged" in error


def test_weights_are_found_and_a_run_that_resumes_does_not_need_its_beginning(latents, folder, capsys) -> None:
    (folder / "run/checkpoints/step-000000000064").rmdir()
    assert main(["train", "dit", "--preset", "demo", "--check", f"shards={latents}", "run=run", "init=gone"]) == 2
    (folder / "run/checkpoints/step-000000000064").mkdir()
    assert "init=gone" in capsys.readouterr().err
    assert main(["train", "dit", "--preset", "demo", "--check", f"shards={latents}", "run=run", "init=gone"]) == 2
    assert "run/config.yaml: missing; copy it" in capsys.readouterr().err  # so the weights were not looked for
    assert main(["train", "dit", "--preset", "demo", "--check", f"shards={latents}", "run=other", "init=run"]) == 0
    assert "   init=run: a folder with weights\n" in capsys.readouterr().out


def test_the_last_word_of_the_launcher_may_be_the_program(latents, tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "mmldm").write_text('#!/bin/sh\necho "inside: $*"\n')
    (tmp_path / "mmldm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (
        main(
            ["train", "dit", "--preset", "demo", "--under", "env A=1 mmldm", f"shards={latents}", f"run={tmp_path}/run"]
        )
        == 0
    )
    assert capfd.readouterr().out == f"inside: train dit --preset demo shards={latents} run={tmp_path}/run\n"
