"""Any tree of media files: a video's label is the name of the first folder that it lies in, as in ImageFolder."""

import os
from pathlib import Path

from data_tools.sources.video import Video
from mmldm_scale.config import SourceConfig
from mmldm_scale.errors import UserError
from mmldm_scale.media.decode import SUFFIXES


class FolderSource:
    """All media files below a folder, by their suffix (any case); links are followed, loops are not."""

    def __init__(self, config: SourceConfig, folder: Path) -> None:
        """Raise UserError if ``folder`` is no folder."""
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; a folder of videos fits")
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file; the folder that holds the videos fits")
        self.folder = folder

    def videos(self) -> list[Video]:
        """Return every media file, sorted by path; raise UserError if there is none or a folder cannot be read."""
        files = sorted(file.relative_to(self.folder).as_posix() for file in self._walk())
        if not files:
            raise UserError(f"{self.folder}: holds no videos ({', '.join(sorted(SUFFIXES))})")
        return [Video(path, _size(self.folder / path), _labels(path), origin=path) for path in files]

    def _walk(self) -> list[Path]:
        """Return the media files, each folder visited once: under its own name rather than under that of a link."""
        found: list[Path] = []
        seen: set[tuple[int, int]] = set()
        pending = [self.folder]  # the folder itself, then links to folders
        while pending:
            links: list[Path] = []
            for start in sorted(pending):
                for parent, folders, files in os.walk(start, onerror=_refuse):
                    status = os.stat(parent)
                    if (status.st_dev, status.st_ino) in seen:
                        folders.clear()
                        continue
                    seen.add((status.st_dev, status.st_ino))
                    links += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
                    found += [Path(parent, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
            pending = links
        return found


def _labels(path: str) -> tuple[str, ...]:
    first, slash, _ = path.partition("/")
    return (first,) if slash else ()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a dangling link, or not ours to look at: probing it will say which
        return 0


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
