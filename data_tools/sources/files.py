"""Finds the files of a source's folder in one pass."""

import os
from collections.abc import Collection
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.media.decode import SUFFIXES

SPLITS = ("train", "val", "validation", "test", "eval")  # folders that are parts of a data set


def find_videos(folder: Path) -> list[str]:
    """Return the media files below ``folder``, as :func:`find_files` does; raise UserError if there are none."""
    files = find_files(folder, SUFFIXES)
    if not files:
        raise UserError(f"{folder}: holds no videos ({', '.join(sorted(SUFFIXES))})")
    return files


def find_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Return the files below ``folder`` that end in one of ``suffixes`` (any case): relative paths, sorted.

    Links are followed, loops are not: each folder is visited once, under its own name rather than under that of a link.
    Raises UserError if ``folder`` is no folder, or one below it cannot be read.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give a folder of media files")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give the folder that holds the media files")
    top = os.path.join(folder, "")
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [top]  # the folder itself, then links to folders
    while pending:
        links: list[str] = []
        for start in sorted(pending):
            for parent, folders, files in os.walk(start, onerror=_refuse):
                status = os.stat(parent)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                below = [os.path.join(parent, name) for name in folders]
                links += [name for name in below if os.path.islink(name)]
                inside = os.path.join(parent, "")[len(top) :]
                paths += [inside + name for name in files if os.path.splitext(name)[1].lower() in suffixes]
        pending = links
    return sorted(paths)


def file_size(folder: Path, path: str) -> int:
    """Return the bytes of a file, 0 for a dangling link and what is not ours to look at: probing will say which."""
    try:
        return os.stat(os.path.join(folder, path)).st_size
    except OSError:
        return 0


def folder_split(folder: Path, path: str) -> str:
    """Return the innermost folder of ``folder/path`` (``folder`` itself included) that is one of SPLITS, or ""."""
    parents = [os.path.basename(os.path.abspath(folder)), *path.split("/")[:-1]]
    return next((name.lower() for name in reversed(parents) if name.lower() in SPLITS), "")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
