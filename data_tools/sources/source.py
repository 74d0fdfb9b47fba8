"""What every kind of source offers: settings of its own, and the stretches of video that it knows of."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .video import Video


@dataclass
class SourceOptions:
    """Settings that every kind of source has, ``source.*`` of a configuration; each kind adds its own."""

    kind: str = ""  # name of the kind in the registry of sources
    split: str = ""  # of all videos; "": what folders, names of segment lists and columns say


class Source(Protocol):
    """A collection of media files on disk.

    Attributes:
        folder: what the videos' paths are relative to.
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


def sound_file(sound_folder: Path | None, audio: str) -> Path | None:
    """Return the file that ``Video.audio`` names in ``sound_folder``; None if the sound is in the video itself."""
    return sound_folder / audio if sound_folder is not None and audio else None
