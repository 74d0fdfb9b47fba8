"""A copy of the code for a job, so that edits do not reach a job that waits, runs or is requeued.

``take(folder)`` copies the package that this process imports, whether committed, changed or installed, and records its
origin. submitit's own snapshot needs rsync and a git clone, and leaves out new files.
"""

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mmldm_scale

PACKAGE = Path(mmldm_scale.__file__).resolve().parent
ORIGIN = "origin.txt"  # beside a copy: the commit or version that was copied, and the changed files
PROLOGUE = PACKAGE.parent / "slurm" / "prologue.sh"  # exists in a checkout only


@dataclass(frozen=True)
class CodeSnapshot:
    """The copy.

    Attributes:
        folder: to put on PYTHONPATH; contains ``origin.txt``, and ``changes.patch`` if there are uncommitted changes.
        prologue: the copied prologue of the job scripts; None if the package is installed.
        origin: the commit or version that was copied.
    """

    folder: Path
    prologue: Path | None
    origin: str


def take(folder: Path) -> CodeSnapshot:
    """Copy the package that this process runs into ``folder``, which is created."""
    code = origin()
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    prologue = Path(shutil.copy2(PROLOGUE, folder)) if PROLOGUE.is_file() else None
    changes = _is_changed()
    (folder / ORIGIN).write_text(f"{code}\n{_git('status', '--short', '--', '.') if changes else ''}", "utf-8")
    if changes:
        (folder / "changes.patch").write_text(_git("diff", "HEAD", "--binary", "--", "."), "utf-8")
    return CodeSnapshot(folder, prologue, code)


@functools.cache
def code_version() -> dict[str, Any]:
    """Return "version", "commit" ("" if unknown) and "changed" of the code that this process began with."""
    found = re.fullmatch(r"commit ([0-9a-f]{40,64})(, with changes)?", origin())
    return {
        "version": mmldm_scale.__version__,
        "commit": found[1] if found else "",
        "changed": bool(found and found[2]),
    }


def origin() -> str:
    """Return the commit or version of the package that this process runs; of a copy by :func:`take`, what it copied."""
    if (PACKAGE.parent / ORIGIN).is_file():
        return (PACKAGE.parent / ORIGIN).read_text("utf-8", errors="replace").partition("\n")[0]
    if not _git("ls-files", "__init__.py"):  # installed, possibly inside another project's checkout
        return f"{PACKAGE.name} {_version()}, as installed in {PACKAGE.parent}"
    return f"commit {_git('rev-parse', 'HEAD').strip()}{', with changes' if _is_changed() else ''}"


def _version() -> str:
    try:
        return metadata.version(PACKAGE.name)
    except metadata.PackageNotFoundError:  # a copy of the files, found by PYTHONPATH
        return "of unknown version"


def _is_changed() -> bool:
    """Return whether the package is in a checkout and has uncommitted changes."""
    return bool(_git("ls-files", "__init__.py") and _git("status", "--short", "--", "."))


def _git(*arguments: str) -> str:
    """Return git's output in the package's folder; empty outside of a checkout or without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
