"""A copy of the code for a job: editing the project while the job waits, runs or is queued again changes nothing.

``take(folder)`` copies the package as it is imported here, whether committed, changed or installed, and notes what it
is a copy of. submitit's own snapshot needs rsync and a git clone, and leaves out new files.
"""

import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mmldm_scale

PACKAGE = Path(mmldm_scale.__file__).resolve().parent
PROLOGUE = PACKAGE.parent / "slurm" / "prologue.sh"  # only beside a checkout


@dataclass(frozen=True)
class CodeSnapshot:
    """The copy.

    Attributes:
        folder: what PYTHONPATH has to name; with ``origin.txt``, and ``changes.patch`` for a package with changes.
        prologue: the copied prologue of the job scripts, if there is one.
        origin: what it is a copy of, in a few words.
    """

    folder: Path
    prologue: Path | None
    origin: str


def take(folder: Path) -> CodeSnapshot:
    """Copy the package that this process runs into ``folder``, which is made."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    prologue = Path(shutil.copy2(PROLOGUE, folder)) if PROLOGUE.is_file() else None
    origin, changes = _describe()
    (folder / "origin.txt").write_text(f"{origin}\n{_git('status', '--short', '--', '.') if changes else ''}")
    if changes:
        (folder / "changes.patch").write_text(_git("diff", "HEAD", "--binary", "--", "."))
    return CodeSnapshot(folder, prologue, origin)


def _describe() -> tuple[str, bool]:
    """Return what the package is, and whether git tells of changes in it."""
    if not _git("ls-files", "__init__.py"):  # installed, be it below somebody else's checkout
        return f"{PACKAGE.name} {metadata.version(PACKAGE.name)}, as installed in {PACKAGE.parent}", False
    changes = bool(_git("status", "--short", "--", "."))
    return f"commit {_git('rev-parse', 'HEAD').strip()}{', with changes' if changes else ''}", changes


def _git(*arguments: str) -> str:
    """Return what git prints about the package; nothing if it is in no checkout, or git is not here."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
