"""Who imports whom: the contracts of pyproject.toml hold, and no circle of imports exists between files."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

PACKAGES = ("mmldm_scale", "data_tools")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_contracts(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)

    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_circle_between_files() -> None:
    """Imports inside functions count, and so do those of a package's ``__init__.py``."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    assert _circle(imports) == ""


def test_a_circle_is_named() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in ("b -> c -> b", "c -> b -> c")


def test_every_package_has_an_init() -> None:
    """setuptools and the contracts see only folders that have one."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]

    assert [str(file) for file in files if not file.with_name("__init__.py").exists()] == []


def _circle(imports: Mapping[str, set[str]]) -> str:
    """Return the modules of a circle, each importing the next, or "" if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))  # graphlib names the imported module first
    return ""
