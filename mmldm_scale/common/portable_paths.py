"""Paths in files that are copied to other machines: without the part that only this machine has.

portable("/home/me/project/runs/autoencoder", base)  # "runs/autoencoder", in /home/me/project
find(Path("runs/autoencoder"), folder)               # below the current folder, or one that contains ``folder``
"""

import os
from pathlib import Path


def portable(path: str, base: Path) -> str:
    """Return ``path`` relative to the current folder, else to the deepest folder that it shares with ``base``.

    If they share none, only the name is left.
    """
    if not os.path.isabs(path):
        return path
    shared = os.path.commonpath([path, base.resolve()])
    for folder in (os.getcwd(), shared):
        if folder != os.sep and Path(path).is_relative_to(folder):
            return Path(path).relative_to(folder).as_posix()
    return Path(path).name


def find(path: Path, near: Path) -> Path:
    """Return the existing ``path`` below the current folder, else below a folder that contains ``near``.

    Without one, and if it is absolute, it is returned as it is.
    """
    if not path.is_absolute():
        for folder in (Path.cwd(), *near.resolve().parents):
            if (folder / path).exists():
                return folder / path
    return path
