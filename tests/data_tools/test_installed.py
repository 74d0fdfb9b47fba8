"""An installed wheel: the command `mmldm shard`, without a top-level package `data_tools`."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mmldm_scale import cli

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("mmldm_scale", "data_tools", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder`` without this checkout on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that holds the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "clone").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "clone" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(folder, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "clone")
    assert built.returncode == 0, built.stderr
    made = run(folder, sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    assert made.returncode == 0, made.stderr
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (wheel,) = folder.glob("*.whl")
    put = run(folder, *pip, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", wheel)
    assert put.returncode == 0, put.stderr
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # behind the wheel's packages
    return folder / "venv" / "bin"


def test_no_top_level_name_that_another_project_may_have(installed, tmp_path):
    missing = run(tmp_path, installed / "python", "-c", "import data_tools")
    assert "ModuleNotFoundError" in missing.stderr
    code = "import mmldm_data_tools, mmldm_scale; print(mmldm_data_tools.__file__, mmldm_scale.__file__)"
    found = run(tmp_path, installed / "python", "-c", code)
    assert all(Path(file).is_relative_to(installed.parent) for file in found.stdout.split()), found


def test_help_names_the_installed_command(installed, tmp_path):
    shown = run(tmp_path, installed / "mmldm", "shard", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: mmldm shard" in shown.stdout
    assert "mmldm shard clips --source folder" in shown.stdout
    assert "shard.py" not in shown.stdout


@pytest.mark.parametrize("launched", [(), ("--launcher", "local", "--jobs", "2")])
def test_clips_are_cut_in_an_empty_folder(installed, good_videos, overrides, tmp_path, launched):
    command = ("shard", "clips", "--input", good_videos, "--output", "set", "--workers", "1", *launched, *overrides)
    done = run(tmp_path, installed / "mmldm", *command)
    assert done.returncode == 0, done.stderr
    assert "15 clips in 4 shards" in done.stdout
    refused = run(tmp_path, installed / "mmldm", *command, "stride=3")
    assert refused.returncode == 2
    assert "mmldm shard: set: was begun with another configuration" in refused.stderr


def test_without_the_package_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "OTHER_COMMANDS", "no such group")
    assert cli.main(["shard", "clips", "--help"]) == 2
    assert capsys.readouterr().err == (
        "mmldm: shard: mmldm_data_tools is not installed; from a clone, run python data_tools/shard.py\n"
    )


def test_the_scripts_run_from_a_clone_that_is_not_installed(tmp_path):
    """Of this project only mmldm_scale is importable, as in an environment that was made before the move."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "mmldm_scale").symlink_to(ROOT / "mmldm_scale")
    (tmp_path / "clone").mkdir()
    shutil.copytree(ROOT / "data_tools", tmp_path / "clone" / "data_tools")
    for script in ("shard.py", "demo/corpus.py"):
        command = [sys.executable, tmp_path / "clone" / "data_tools" / script, "--help"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
