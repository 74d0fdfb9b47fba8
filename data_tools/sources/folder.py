"""Any tree of media files: a video's label is the name of the first folder that it lies in, as in ImageFolder.

With a list (``source.list``), the stretches that the list names; see :mod:`.listing`.
"""

from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config import require

from .files import file_size, find_videos
from .listing import ListedSource
from .source import Source, SourceOptions
from .video import Video


@dataclass
class FolderOptions(SourceOptions):
    """Settings of ``--source folder``."""

    kind: str = "folder"
    # a file that lists what to take, perhaps a selection from another source; "": every media file
    list: str = path_key("")
    music: str = path_key("")  # for lists with a column "audio": the folder of the sound files

    def __post_init__(self) -> None:
        require(bool(self.list) or not self.music, "source.music", "only with source.list, or for source.kind=aist")


class FolderSource:
    """All files below a folder; links are followed, loops are not."""

    def __init__(self, options: FolderOptions, folder: Path) -> None:
        self.folder = folder
        self.sound_folder: Path | None = None
        self._split = options.split

    def videos(self) -> list[Video]:
        """Return every file, videos sorted by path first; raise UserError if none is or a folder cannot be read."""
        found = find_videos(self.folder)
        videos = [
            Video(path, file_size(self.folder, path), _labels(path), origin=path, split=self._split)
            for path in found.videos
        ]
        return videos + found.others


def open_folder(options: FolderOptions, folder: Path) -> Source:
    """Return the media files of ``folder``, or what the list of ``options`` names; raise UserError as those do."""
    if options.list:
        return ListedSource(Path(options.list), folder, options.music, options.split)
    return FolderSource(options, folder)


def _labels(path: str) -> tuple[str, ...]:
    first, slash, _ = path.partition("/")
    return (first,) if slash else ()
