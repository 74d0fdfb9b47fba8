"""AudioSet's own formats: the lines of its segment lists, and how downloaded files are named after them.

    # Segments csv created Sun Mar  5 10:54:25 2017
    YTID, start_seconds, end_seconds, positive_labels
    --4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"

A YouTube id has 11 characters, "_" and "-" among them also at its ends, so it is cut off by length and never split at.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import NamedTuple

from mmldm_scale.common.errors import UserError

MAX_LINE = 1 << 16  # characters
_ID = "[A-Za-z0-9_-]{11}"
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_ROW = re.compile(rf'\s*({_ID})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*(?:"([^"]+)"|([^"]+?))\s*')
_FILE = re.compile(rf"(?:({_ID})|Y({_ID}))(?:[_-]({_NUMBER})(?:[_-]{_NUMBER})?)?")


class Segment(NamedTuple):
    """A row of a segment list: seconds [start, end) of a YouTube video have the labels ``mids``."""

    youtube_id: str
    start: float
    end: float
    mids: tuple[str, ...]


class NamedFile(NamedTuple):
    """A media file named after a segment: by id alone, or with its start, in whatever unit."""

    path: str
    youtube_id: str
    start: float | None

    def holds(self, segment: Segment) -> bool:
        """Return whether the file's name fits ``segment``: its start in (whole) seconds or in milliseconds."""
        if self.youtube_id != segment.youtube_id:
            return False
        milliseconds = round(segment.start * 1000)
        return self.start is None or (
            round(self.start * 1000) == milliseconds or self.start in (milliseconds, milliseconds // 1000)
        )


def read_segments(file: Path) -> Iterator[tuple[int, Segment | str]]:
    """Yield for each row of a segment list its line number and its segment, or what is wrong with it.

    Comments, empty lines and the header are no rows. Raises UserError if ``file`` cannot be read as text.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), ""), 1):
                if len(line) == MAX_LINE:
                    raise UserError(f"{file}: line {number} has {MAX_LINE} characters or more: no segment list")
                if not line.isspace() and not line.startswith(("#", "YTID", '"YTID')):
                    yield number, _parse(line)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None


def parse_name(path: str) -> NamedFile | None:
    """Return the YouTube id and the start in the name of a media file, or None if it is not named by a YouTube id.

    Fits ID, ID_30, ID_000030, ID_30.000_40.000, ID_30000_40000 and ID-30-40, all of them also behind a "Y".
    """
    begin, dot = path.rfind("/") + 1, path.rfind(".")
    match = _FILE.fullmatch(path, begin, dot if dot > begin else len(path))
    if match is None:
        return None
    return NamedFile(path, match[1] or match[2], None if match[3] is None else float(match[3]))


def list_split(file: Path) -> str:
    """Return the part of AudioSet that a list's name tells: "eval" for eval_segments.csv."""
    return file.stem.removesuffix("_segments")


def _parse(line: str) -> Segment | str:
    match = _ROW.fullmatch(line)
    if match is None:
        return f'{line.strip()[:100]!r} is no row of: YTID, start_seconds, end_seconds, "labels"'
    segment = Segment(match[1], float(match[2]), float(match[3]), _split_labels(match[4] or match[5]))
    if segment.end <= segment.start:
        return f"{segment.youtube_id} ends at {segment.end:g} s, not after its start at {segment.start:g} s"
    return segment


@lru_cache(1 << 16)  # many rows have the same labels
def _split_labels(text: str) -> tuple[str, ...]:
    return tuple(intern(mid.strip()) for mid in text.split(",") if mid.strip())
