"""What every kind of source offers: settings of its own, and the stretches of video that it knows of."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmldm_scale.media.clip import MediaError

from .tar_members import opened
from .video import Video


@dataclass
class SourceOptions:
    """Settings that every kind of source has, ``source.*`` of a configuration; each kind adds its own."""

    kind: str = ""  # name of the kind in the registry of sources
    split: str = ""  # of all videos; "": what folders, names of segment lists and columns say
    audio_stream: int | None = None  # number of the sound track, from 0, in files with several; null: the best one


class Source(Protocol):
    """A collection of media files on disk.

    Attributes:
        folder: what the videos' paths are relative to; one may lead into a tar, see ``tar_members``.
        sound_folder: what the paths in ``Video.audio`` are relative to; None if no video has sound in another file.
    """

    folder: Path
    sound_folder: Path | None

    def videos(self) -> list[Video]:
        """Return every stretch, in an order that depends on the input alone.

        What a list names but no file gives, and a file that is no video, is a ``Video`` with a ``reason``. Raises
        UserError if there is no video or something cannot be read.
        """


def entries(source: Source, output: Path) -> list[Video]:
    """Return the videos of ``source`` without files that lie in ``output``, or among its jobs' logs: we made those."""
    folder, ours = os.path.realpath(source.folder), os.path.realpath(output)
    if os.path.commonpath([folder, ours]) != folder:
        return source.videos()
    inside = os.path.relpath(ours, folder)
    return [video for video in source.videos() if not video.path.startswith((f"{inside}/", f"{inside}-jobs/"))]


@contextmanager
def media_files(folder: Path, sound_folder: Path | None, path: str, audio: str) -> Iterator[tuple[Path, Path | None]]:
    """Yield the file of ``Video.path``, and the one that ``Video.audio`` names (None: the sound is in the video).

    Raises:
        MediaError: as in ``tar_members.opened``. Its detail, and that of any other raised here, is without their paths.
    """
    file: Path | None = None
    sound: Path | None = None
    try:
        with ExitStack() as stack:
            file = stack.enter_context(opened(folder, path))
            if sound_folder is not None and audio:
                sound = stack.enter_context(opened(sound_folder, audio))
            yield file, sound
    except MediaError as error:
        raise MediaError(error.reason, without_paths(error.detail, file, sound)) from None


def without_paths(detail: str, *files: Path | None) -> str:
    """Return ``detail`` of a MediaError without the path of one of ``files`` at its beginning: that is known."""
    for file in files:
        detail = detail.removeprefix(f"{file}: ")
    return detail
