"""Where videos come from: each kind of source knows its own layout and lists, and yields stretches of media files.

``open_source(config.source, folder).videos()`` gives every :class:`~.video.Video` that there is. The contract is in
``source.py``, the kinds are listed in ``registry.py``.
"""

from .registry import SourceKind, open_source, read_options, register, registered
from .source import Source, SourceOptions
from .video import Video

__all__ = [
    "Source",
    "SourceKind",
    "SourceOptions",
    "Video",
    "open_source",
    "read_options",
    "register",
    "registered",
]
