"""Where videos come from: each source knows its own layout and lists, and yields stretches of media files.

``open_source(config.source, folder).videos()`` gives every :class:`~.sources.video.Video` that there is, in
an order that depends on the input alone. What a list names but no file gives is a ``Video`` too, with the reason why.
"""

from pathlib import Path
from typing import Protocol

from ..config import SourceConfig
from .aist import AISTSource
from .audioset import AudioSetSource
from .folder import FolderSource
from .landscape import LandscapeSource
from .listing import ListedSource
from .video import Video


class Source(Protocol):
    """What every kind of source offers."""

    folder: Path

    def videos(self) -> list[Video]:
        """Return every stretch; raise UserError if there is none or something cannot be read."""


SOURCES = {"folder": FolderSource, "audioset": AudioSetSource, "landscape": LandscapeSource, "aist": AISTSource}


def open_source(config: SourceConfig, folder: Path) -> Source:
    """Return the source that ``config`` describes over the media files in ``folder``; raise UserError if none fits."""
    if config.kind == "folder" and config.list:
        return ListedSource(config, folder)
    return SOURCES[config.kind](config, folder)
