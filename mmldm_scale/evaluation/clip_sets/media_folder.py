"""A folder of media files as a set: videos, frames-only videos with a sound file each, or sound files alone.

Files are found by their endings, at any depth; those whose name begins with a dot are left out. A clip's name is its
file's path in the folder, without the ending.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord, ClipSet
from mmldm_scale.media.decode import SOUND_SUFFIXES, SUFFIXES
from mmldm_scale.media.find_files import find_media
from mmldm_scale.media.whole import read_whole

HASHED_TOGETHER = 4  # files; hashing is mostly waiting for the disk


@dataclass(frozen=True)
class ClipFiles:
    """The files of a clip: ``medium``, a video or a sound file, and ``sound`` if a video's sound is a separate file."""

    medium: Path
    sound: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        return iter([self.medium] if self.sound is None else [self.medium, self.sound])


class MediaFolder(ClipSet):
    """Clips that are media files in ``folder``.

    Args:
        path: of the set, as the user wrote it.
        folder: the folder.
        files: the files of each clip, by its name.
    """

    def __init__(self, path: str, folder: Path, files: Mapping[str, ClipFiles]) -> None:
        self.path, self._folder = path, folder
        self.names = sorted(files)
        self._files = [files[name] for name in self.names]
        if any(clip.sound for clip in self._files):
            self.kind = "frames and sound"
        else:
            is_sound = all(clip.medium.suffix.lower() in SOUND_SUFFIXES for clip in self._files)
            self.kind = "sound" if is_sound else "videos"

    def read(self, index: int) -> ClipRecord:
        files = self._files[index]
        clip, frame_rate, sample_rate = read_whole(files.medium, files.sound)
        return ClipRecord(self.names[index], clip, frame_rate, sample_rate, self.info(index))

    def info(self, index: int) -> Mapping[str, Any]:
        """Return what the folder says of clip ``index``: nothing."""
        return {}

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the files' names, sizes and sha256; every file is read, once.

        Raises:
            UserError: a file cannot be read.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        files = [file for clip in self._files for file in clip]
        with ThreadPoolExecutor(HASHED_TOGETHER) as pool:
            rows = list(pool.map(self._row, files))
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()

    def _row(self, file: Path) -> tuple[str, int, str]:
        try:
            return file.relative_to(self._folder).as_posix(), file.stat().st_size, sha256(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def media_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the videos and the sound files below ``folder``, by their endings, each sorted; links are followed."""
    files = find_media(folder, SUFFIXES | SOUND_SUFFIXES)
    videos = [file for file in files if file.suffix.lower() in SUFFIXES]
    return videos, [file for file in files if file.suffix.lower() in SOUND_SUFFIXES]


def pair_files(path: str, folder: Path, videos: Sequence[Path], sounds: Sequence[Path]) -> dict[str, ClipFiles]:
    """Return the clips that ``videos`` and ``sounds`` make, by name; a sound file belongs to the video of its name.

    Raises:
        UserError: two videos or sound files have one name; only some of the videos have a sound file, or some sound
            file has no video.
    """
    videos_by_name, sounds_by_name = _by_name(path, folder, videos), _by_name(path, folder, sounds)
    if not videos or not sounds:
        return {name: ClipFiles(file) for name, file in (videos_by_name | sounds_by_name).items()}
    alone = sorted(videos_by_name.keys() ^ sounds_by_name.keys())
    if alone:
        other = "sound file" if alone[0] in videos_by_name else "video"
        file = (videos_by_name | sounds_by_name)[alone[0]].relative_to(folder).as_posix()
        raise UserError(
            f"{path}: contains {len(videos)} videos and {len(sounds)} sound files, but no {other} of the name of "
            f"{file}; each video must have a sound file of its name, or none"
        )
    return {name: ClipFiles(file, sounds_by_name[name]) for name, file in videos_by_name.items()}


def _by_name(path: str, folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return ``files`` by the names of their clips; raise UserError if two have one name."""
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise UserError(
                f"{path}: {named[name].name} and {file.name} would both be the clip {name}; names must be unique"
            )
        named[name] = file
    return named
