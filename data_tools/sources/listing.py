"""A folder of videos with a list of what to take from it: one row a stretch, as CSV, Parquet or JSON Lines.

Columns: ``path``, relative to the folder; and, optionally, ``start`` and ``end`` in seconds, ``labels``
(a list, or text with ";" between) and ``label`` (the class; first among the labels), ``split``, ``origin`` (the
recording; default: the path), ``seconds`` (how much of the file can be used: then it is not probed), ``audio`` (a sound
file in ``source.music``), ``maybe_trimmed``. Other columns are ignored. ``shard.py select`` writes such lists.

A path may lead into a tar ("00012.tar/000120007.mp4"). Each row becomes one video, in order; files that the list does
not name are ignored.
"""

import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from mmldm_scale.common.errors import UserError

from .files import file_size
from .tables import Row, read_rows
from .tar_members import member_size
from .unicode_forms import OnDisk
from .video import Video

COLUMNS = ("path", "start", "end", "labels", "label", "split", "origin", "seconds", "audio", "maybe_trimmed")


class ListedSource:
    """What a list names in a folder; see the module's text."""

    def __init__(self, file: Path, folder: Path, music: str = "", split: str = "") -> None:
        """Take the list ``file`` of media in ``folder``.

        Args:
            music: the folder that the column ``audio`` is relative to; "": the list has no such column.
            split: of all rows; "": what the column ``split`` says.

        Raises:
            UserError: ``folder`` is no folder.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the one that the paths in {file} are relative to")
        self.folder, self.sound_folder = folder, Path(music) if music else None
        self._list, self._split = file, split
        self._on_disk = OnDisk(folder)
        self._sound_on_disk = OnDisk(self.sound_folder) if self.sound_folder is not None else None

    def videos(self) -> list[Video]:
        """Return one video a row; raise UserError if the list cannot be read or is empty."""
        videos: list[Video] = []
        seen: set[str] = set()
        for number, row in read_rows(self._list, COLUMNS):
            where = f"{self._list.name}:{number}"
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                video = self._video(row)
            except ValueError as error:
                videos.append(Video(where, origin=where, reason="bad_row", detail=str(error)))
                continue
            if video.name in seen:
                text = f"{video.path} from {video.start:g} s on is listed twice"
                video = Video(where, origin=video.origin, reason="duplicate_row", detail=text)
            seen.add(video.name)
            videos.append(video)
        if not videos:
            raise UserError(f"{self._list}: lists nothing")
        return videos

    def _video(self, row: Row) -> Video:
        """Return the video of ``row``; raise ValueError saying what is wrong with it."""
        path, audio = self._on_disk.path(relative_path(row.get("path"))), ""
        if "audio" in row and row["audio"] != "":
            audio = relative_path(row["audio"])
            if self._sound_on_disk is None:
                raise UserError(f"{self._list}: has a column audio: set source.music to the folder of those files")
            audio = self._sound_on_disk.path(audio)
        start, end, seconds = (_seconds(row, name) for name in ("start", "end", "seconds"))
        start = start or 0.0
        if end is not None and end <= start:
            raise ValueError(f"ends at {end:g} s, not after its start at {start:g} s")
        inside = member_size(self.folder, path)
        exists = inside is not None or os.path.isfile(self.folder / path)
        return Video(
            path,
            file_size(self.folder, path) if inside is None else inside,
            read_labels(row),
            start,
            end,
            maybe_trimmed=str(row.get("maybe_trimmed", "")).lower() in ("true", "1"),
            seconds=seconds,
            origin=_text(row, "origin") or path,
            split=self._split or _text(row, "split"),
            audio=audio,
            reason="" if exists else "no_file",
            detail="" if exists else f"the list names it, but there is no such file in {self.folder}",
        )


def relative_path(value: Any) -> str:
    """Return ``value`` as a path inside a folder, "/" between its parts; raise ValueError if it is none.

    Names that are no text come as bytes where the list's format has them (Parquet).
    """
    text = os.fsdecode(value) if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"path {text!r:.100} is no path")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"path {text!r:.100} leads out of the folder")
    return str(path)


def read_labels(row: Row) -> tuple[str, ...]:
    """Return the labels of ``row``, its class first; raise ValueError if they are no text."""
    labels = row.get("labels", [])
    labels = labels.split(";") if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels {labels!r:.100} are no list of names")
    stripped = [label.strip() for label in (_text(row, "label"), *labels)]
    return tuple(dict.fromkeys(label for label in stripped if label))


def _seconds(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} {value!r:.100} is no number of seconds")
    return seconds


def _text(row: Row, name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r:.100} is no text")
    return value
