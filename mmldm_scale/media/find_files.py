"""Lists the files below a folder, through links to folders, too: data sets are often linked together by class.

for path in find_files(Path("videos")):
    …                                     # "waves/0001.mp4", relative to the folder
"""

import os
from collections.abc import Collection
from pathlib import Path

from mmldm_scale.common.errors import UserError


def find_files(folder: Path) -> list[str]:
    """Return all files below ``folder``: relative paths, sorted.

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
                paths += [inside + name for name in files]
        pending = links
    return sorted(paths)


def find_media(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files below ``folder`` that end with one of ``suffixes`` (small letters, with the dot), sorted.

    Those are left out whose name, or that of a folder between, begins with a dot: "._clip.mp4" is no video, but what a
    Mac leaves beside one. Raises UserError as :func:`find_files` does.
    """
    visible = (path for path in find_files(folder) if not any(part.startswith(".") for part in path.split("/")))
    return sorted(file for file in map(folder.joinpath, visible) if file.suffix.lower() in suffixes and file.is_file())


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
