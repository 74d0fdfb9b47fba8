"""Paths in files that are copied to other machines."""

from pathlib import Path

from mmldm_scale.common.portable_paths import find, portable


def test_the_part_that_only_this_machine_has_is_left_out(tmp_path: Path, monkeypatch) -> None:
    project, run = tmp_path / "project", tmp_path / "project/runs/dit"
    run.mkdir(parents=True)
    monkeypatch.chdir(project)
    assert portable("runs/autoencoder", run) == "runs/autoencoder"
    assert portable(f"{project}/runs/autoencoder", Path("runs/dit")) == "runs/autoencoder"
    monkeypatch.chdir("/")
    assert portable(f"{project}/runs/autoencoder", run) == "autoencoder"
    assert portable("/nowhere/private/autoencoder", run) == "autoencoder"


def test_a_path_is_found_from_the_current_folder_or_the_files(tmp_path: Path, monkeypatch) -> None:
    weights, autoencoder = tmp_path / "weights/dit", tmp_path / "runs/autoencoder"
    weights.mkdir(parents=True)
    autoencoder.mkdir(parents=True)
    monkeypatch.chdir(weights)
    assert find(Path("runs/autoencoder"), Path(".")).samefile(autoencoder)
    assert find(Path("gone"), weights) == Path("gone")
    assert find(autoencoder, weights) == autoencoder
