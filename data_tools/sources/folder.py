"""Any tree of media files: a video's label is the name of the first folder that it lies in, as in ImageFolder."""

from pathlib import Path

from ..config import SourceConfig
from .files import file_size, find_videos
from .video import Video


class FolderSource:
    """All media files below a folder, by their suffix (any case); links are followed, loops are not."""

    def __init__(self, config: SourceConfig, folder: Path) -> None:
        self.folder = folder
        self._split = config.split

    def videos(self) -> list[Video]:
        """Return every media file, sorted by path; raise UserError if there is none or a folder cannot be read."""
        return [
            Video(path, file_size(self.folder, path), _labels(path), origin=path, split=self._split)
            for path in find_videos(self.folder)
        ]


def _labels(path: str) -> tuple[str, ...]:
    first, slash, _ = path.partition("/")
    return (first,) if slash else ()
