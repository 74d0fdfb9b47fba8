"""Presets: files of the package, found by name, combined in order, and nothing about them written twice."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from mmldm_scale import config
from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig, presets
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining

ROOT = Path(__file__).parents[2]


def test_a_checkout_shows_the_presets_as_configs() -> None:
    assert (ROOT / "configs").resolve() == presets.FOLDER
    assert (ROOT / "configs").readlink() == Path("mmldm_scale/config/presets")


def test_a_name_without_a_folder_is_the_commands_own() -> None:
    assert presets.path("L", "dit") == presets.FOLDER / "dit/L.yaml"
    assert presets.path("cluster/a800", "dit") == presets.FOLDER / "cluster/a800.yaml"
    assert presets.path("L", "dit") == presets.path("dit/L")


@pytest.mark.parametrize(
    ("name", "folder", "offers"),
    [
        ("XL", "dit", "must be one of B, L, S, audio, demo, landscape, long, mean_flow, video, cluster/a800,"),
        ("cluster/a80", "dit", "must be one of cluster/a800, cluster/local,"),
        ("clusters/a800", "kl_vae", "must be one of demo, finetune, finetune_demo, cluster/a800,"),
        ("../presets/dit/L", "dit", "must be one of B, L,"),
        ("", "dit", "must be one of B, L,"),
    ],
)
def test_an_unknown_preset_is_one_line_that_lists_the_others(name: str, folder: str, offers: str) -> None:
    with pytest.raises(UserError, match="preset") as error:
        presets.path(name, folder)
    assert offers in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        (["--config", "own.yaml", "--preset", "S", "--preset", "cluster/local"], 1),
        (["--preset", "S", "--preset", "cluster/local", "--config", "own.yaml"], 3),
        (["--config", "configs/dit/S.yaml", "--config", "own.yaml", "shards=y", "--preset", "cluster/local"], 1),
    ],
)
def test_presets_and_files_apply_in_the_order_given_then_overrides(
    options: list[str], workers: int, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(presets.FOLDER)
    (tmp_path / "own.yaml").write_text("training: {workers: 3, seed: 1}\n")
    assert main(["train", "dit", *options, "training.seed=2", "shards=x", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = config.load(DiTTraining, ["printed.yaml"])
    assert printed.model.depth == 12
    assert (printed.training.global_batch, printed.training.workers, printed.training.seed) == (8, workers, 2)


def test_the_dits_models_are_those_of_the_files_the_smallest_first() -> None:
    models = presets.dit_models()
    assert list(models) == ["demo", "S", "B", "L"]
    for name, model in models.items():
        assert model == config.load(DiTTraining, [presets.path(name, "dit")], ["shards=x"]).model


def test_long_videos_are_those_of_the_models_before_it() -> None:
    files = [presets.path(name, "dit") for name in ("L", "landscape", "long")]
    loaded = config.load(DiTTraining, files, ["shards=x"])
    assert loaded.model == dataclasses.replace(presets.dit_models()["L"], continuation=True)
    assert loaded.diffusion == DiffusionConfig(continued=1.0)


def test_a_preset_is_one_file(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "presets"
    shutil.copytree(presets.FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "dit/XL.yaml").write_text("model: {depth: 40, width: 2048, heads: 32}\n")
    monkeypatch.setattr(presets, "FOLDER", folder)
    assert list(presets.dit_models()) == ["demo", "S", "B", "L", "XL"]
    assert main(["train", "dit", "--preset", "XL", "--print-config"]) == 0
    assert "depth: 40" in capsys.readouterr().out


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_one_modality_alone_is_a_preset_after_the_joint_models(modality: str) -> None:
    names = ("landscape", f"landscape_{modality}")
    files = [presets.path(name, "autoencoder") for name in names]
    autoencoder = config.load(AutoencoderTraining, files, ["shards=x", "kl_vae=y"])
    assert autoencoder.model.modalities == [modality]
    assert autoencoder.contrastive_weight == 0
    assert autoencoder.adversarial.weight == {"video": 0.1, "audio": 0}[modality]
    files = [presets.path(name, "dit") for name in ("S", "landscape", modality)]
    dit = config.load(DiTTraining, files, ["shards=x"])
    assert dit.model == dataclasses.replace(presets.dit_models()["S"], modalities=[modality])
