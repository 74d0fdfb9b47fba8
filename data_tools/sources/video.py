"""A stretch of a media file, with its labels, split and origin: what a source yields."""

import posixpath
from dataclasses import dataclass

BY_NAME = ("not_a_video", "hidden_file")  # reasons for which a file is dropped without being opened
TRIMMED = 1.0  # seconds by which a file that was cut to its stretch may be longer than it


@dataclass(frozen=True, slots=True)
class Video:
    """A stretch of one media file; with a ``reason``, an entry that is dropped before anything is opened.

    Attributes:
        path: of the file, relative to its source's folder, "/" between parts; without a file, what the list calls it.
        bytes: the file's size.
        labels: its classes; the first one is the class that training uses.
        start, end: the stretch in seconds on the clock of ``media.decode``; without ``end`` it goes on to the last.
        maybe_trimmed: the file may have been cut to the stretch, and then begins at ``start``; see :meth:`stretch`.
        seconds: how much of the file can be used, where a list says so; else the file has to be probed.
        origin: the recording that it was cut from; splits never share one.
        split: the source's own part ("train", "test", "eval"), or "".
        audio: of a file whose sound replaces the video's own, relative to ``source.music``; both begin together.
        reason, detail: why it gives no candidate, as in the drop log ("no_file", "bad_row", "two_files").
    """

    path: str
    bytes: int = 0
    labels: tuple[str, ...] = ()
    start: float = 0.0
    end: float | None = None
    maybe_trimmed: bool = False
    seconds: float | None = None
    origin: str = ""
    split: str = ""
    audio: str = ""
    reason: str = ""
    detail: str = ""

    @property
    def dropped_by_name(self) -> bool:
        """Whether its name alone says that it is no video; such a file may come and go while a set is made."""
        return self.reason in BY_NAME

    @property
    def name(self) -> str:
        """The path, and for a stretch its first millisecond: a source drops the second one that has the same.

        The millisecond stands behind "//", which no path holds, so a stretch is never taken for another file.
        """
        if self.dropped_by_name:
            return f"{self.path}/"  # never that of a video, whose key must not depend on the files beside it
        if self.end is None and not self.start:
            return self.path
        stem, suffix = posixpath.splitext(self.path)
        return f"{stem}//{round(self.start * 1000)}{suffix}"

    def stretch(self, seconds: float) -> tuple[float, float]:
        """Return where the stretch begins and ends in a file that has ``seconds`` to use; it may be empty."""
        if self.end is None:
            return self.start, seconds
        if self.maybe_trimmed and seconds <= self.end - self.start + TRIMMED:
            return 0.0, seconds
        return self.start, min(self.end, seconds)
