"""Where videos come from. A source knows its own layout and yields the videos in it, sorted, with their labels.

``FolderSource(path).videos()`` takes any tree of media files; a video's label is the name of the first sub-folder it
lies in (the ImageFolder convention), and none for files directly in the folder.
"""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mmldm_scale.errors import UserError
from mmldm_scale.media.decode import SUFFIXES

KEY_CHARACTERS = 56  # of a video's key, before what tells it from others and its window's number


@dataclass(frozen=True)
class Video:
    """One media file: ``path`` relative to its source's folder with "/" between parts, its size, its label."""

    path: str
    bytes: int
    label: str | None


class FolderSource:
    """All media files below a folder, by their suffix (any case); links are followed, loops are not."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
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
        return [Video(path, _size(self.folder / path), _label(path)) for path in files]

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


def unique_keys(paths: list[str]) -> list[str]:
    """Return a key for each path: letters, digits, "_" and "-" only, no two alike, the same for the same list.

    A path that stays readable and alone keeps its own name ("cat/a 1.mp4" becomes "cat_a_1"); those that would share a
    name, or are cut, get a hash of their path at the end.
    """
    plain = [_plain(path) for path in paths]
    keys = [_hashed(*pair, 8) if len(pair[0]) > KEY_CHARACTERS else pair[0] for pair in zip(plain, paths, strict=True)]
    for digits in (8, 16):
        counts = Counter(keys)
        for i, path in enumerate(paths):
            if counts[keys[i]] > 1:
                keys[i] = _hashed(plain[i], path, digits)
    if len(set(keys)) < len(keys):
        raise UserError("two paths of the input give the same key even with a hash; rename one of them")
    return keys


def _plain(path: str) -> str:
    stem = unicodedata.normalize("NFKD", path.removesuffix(Path(path).suffix))
    letters = "".join(c for c in stem if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in letters)


def _hashed(name: str, path: str, digits: int) -> str:
    digest = blake2b(os.fsencode(path)).hexdigest()[:digits]
    return f"{name[: KEY_CHARACTERS - digits - 1]}-{digest}"


def _label(path: str) -> str | None:
    first, slash, _ = path.partition("/")
    return first if slash else None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a dangling link, or not ours to look at: probing it will say which
        return 0


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
