"""Which downloaded file holds which segment of a YouTube video: for lists such as AudioSet's and VGGSound's.

    files = SegmentFiles(paths)
    videos = [segment_video(folder, segment, files, …) for segment in segments if files.add(segment)]
    videos = files.without_wrong_guesses(videos)
    dropped = files.unused(paths)

:func:`segments.parse_name` knows how the files are called.
"""

from dataclasses import replace
from pathlib import Path

from .files import file_size
from .segments import NamedFile, Segment, parse_name
from .video import Video


class SegmentFiles:
    """The files by their video, and which of them the segments added so far have taken."""

    def __init__(self, paths: list[str]) -> None:
        """Take the files ``paths``, sorted."""
        files = [file for file in map(parse_name, paths) if file is not None]
        self._files: dict[str, list[NamedFile]] = {}
        for file in sorted(files, key=lambda file: file.start is None):  # those that state a start first, then by path
            self._files.setdefault(file.youtube_id, []).append(file)
        self._starts: dict[str, tuple[int, ...]] = {}  # milliseconds, of the segments listed
        self._chosen: dict[str, str] = {}
        self.taken: set[str] = set()

    def add(self, segment: Segment) -> bool:
        """Add a listed ``segment``; return False if it was added before."""
        starts, start = self._starts.get(segment.youtube_id, ()), round(segment.start * 1000)
        if start in starts:
            return False
        self._starts[segment.youtube_id] = (*starts, start)
        return True

    def take(self, segment: Segment) -> NamedFile | None:
        """Return the file that holds ``segment``, None if there is none; of several the same one each time."""
        fitting = [
            file
            for file in self._files.get(segment.youtube_id, ())
            if file.holds(segment) and (file.start is None or file.path not in self.taken)
        ]
        if not fitting:
            return None
        self.taken.add(fitting[0].path)
        self._chosen.update((file.path, fitting[0].path) for file in fitting[1:])
        return fitting[0]

    def without_wrong_guesses(self, videos: list[Video]) -> list[Video]:
        """Return ``videos``, made of all segments, those of a whole video without the guess that it was cut to one."""
        often = {youtube_id for youtube_id, starts in self._starts.items() if len(starts) > 1}
        return [
            replace(video, maybe_trimmed=False) if video.maybe_trimmed and video.origin in often else video
            for video in videos
        ]

    def unused(self, paths: list[str]) -> list[Video]:
        """Return a dropped entry for each of ``paths`` that no segment has a use for."""
        return [self._unused_file(path) for path in paths if path not in self.taken]

    def _unused_file(self, path: str) -> Video:
        file = parse_name(path)
        if file is None:
            return Video(path, origin=path, reason="not_listed", detail="not named by a YouTube id")
        chosen = self._chosen.get(path, "")
        if chosen:
            return Video(path, origin=file.youtube_id, reason="two_files", detail=f"{chosen} holds the same segment")
        text = f"{file.youtube_id}{'' if file.start is None else f' from {file.start:g} on'} is in no list"
        return Video(path, origin=file.youtube_id, reason="not_listed", detail=text)


def segment_video(
    folder: Path,
    segment: Segment,
    files: SegmentFiles,
    labels: tuple[str, ...],
    split: str,
    reason: str = "",
    detail: str = "",
) -> Video:
    """Return ``segment`` with the file in ``folder`` that holds it, dropped as "no_file" if there is none.

    Args:
        segment: one that was added to ``files``.
        reason, detail: why it is dropped whatever file there is; "": it is not.
    """
    file = files.take(segment)
    path, start, end, size = segment.youtube_id, segment.start, segment.end, 0
    if file is not None:
        path = file.path
        if file.start is not None:  # named by its start, so that is where it begins
            start, end = 0.0, segment.end - segment.start
        if not reason:
            size = file_size(folder, path)
    elif not reason:
        reason, detail = "no_file", f"no file is called {path}, with or without its start at {start:g} s"
    return Video(
        path,
        size,
        labels,
        start,
        end,
        maybe_trimmed=file is not None and file.start is None,
        origin=segment.youtube_id,
        split=split,
        reason=reason,
        detail=detail,
    )
