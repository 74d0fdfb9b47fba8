"""The installed wheel in an empty folder: commands find their presets there, without a checkout."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "mmldm_scale", "data_tools")
Run = Callable[..., str]


def call(*words: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, without the checkout on its path; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command of a fresh environment with the wheel, in an empty folder.

    The environment sees the libraries of this one, but not what this one has installed for development: a path added
    by a .pth file has its own .pth files ignored.
    """
    folder = tmp_path_factory.mktemp("wheel")
    project, venv, empty = folder / "project", folder / "venv", folder / "empty"
    project.mkdir()
    empty.mkdir()
    files = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES, cwd=ROOT)
    for name in filter(None, files.split("\0")):  # pip builds inside the folder, which should not be the checkout
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, project, cwd=folder)
    call(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    call(*pip, "--python", venv / "bin/python", "install", "--no-deps", *folder.glob("*.whl"), cwd=folder)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    def run(program: str, *words: str) -> str:
        printed = call(venv / "bin" / program, *words, cwd=empty, OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
        assert not any(empty.iterdir())
        return printed

    return run


def test_the_package_is_the_installed_one_and_has_every_preset(installed: Run) -> None:
    code = (
        "import mmldm_scale, json; from mmldm_scale.config import presets;"
        "print(mmldm_scale.__file__); print(presets.FOLDER);"
        "print(*(f'{folder}/{name}.yaml' for folder in presets.folders() for name in presets.names(folder)));"
        "from mmldm_scale.evaluation import protocols, tables;"
        "print(*protocols.names(), *(table.title for table in map(tables.load, tables.names())))"
    )
    package, folder, names, evaluation = installed("python", "-c", code).splitlines()
    assert "mmdiffusion " in evaluation
    assert "Table 6" in evaluation
    assert not Path(package).is_relative_to(ROOT)
    assert Path(folder) == Path(package).parent / "config/presets"
    assert set(names.split()) == {
        file.relative_to(ROOT / "configs").as_posix() for file in ROOT.glob("configs/*/*.yaml")
    }


@pytest.mark.parametrize(
    ("command", "prints"),
    [
        ("train dit --preset L --preset cluster/a800 --print-config", "depth: 36"),
        ("train autoencoder --preset landscape --print-config", "kl_vae: ???"),
        ("plan --model demo --gpu a800", "GPU-hours"),
        ("ablation --help", "--num-samples"),
        ("evaluate --help", "--check-weights"),
        ("model-info --preset demo", "1.3 M trained"),
    ],
)
def test_commands_work_in_an_empty_folder(installed: Run, command: str, prints: str) -> None:
    assert prints in installed("mmldm", *command.split())
