"""VGGSound: its list as it is published, and 10 s files named by video id and start.

    ---g-f_I2yQ,1,"people marching",test
    --0PQM4-hqg,30,"waterfall burbling",train

The list is ``source.list``, by default vggsound.csv in the folder. Files lie flat or in any sub-folders; their names
are those that AudioSet's downloaders give, too (ID_000030.mp4, ID_30.mp4, ID_30000_40000.mp4, ID.mp4). Each row becomes
one video, in the list's order; behind them come the files that no row has a use for.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.errors import UserError

from .files import find_videos
from .segment_files import SegmentFiles, segment_video
from .segments import MAX_LINE, Segment, parse_name
from .source import SourceOptions
from .video import Video

SECONDS = 10.0  # length of every segment


@dataclass
class VGGSoundOptions(SourceOptions):
    """Settings of ``--source vggsound``."""

    kind: str = "vggsound"
    list: str = path_key("")  # the list of segments; "": vggsound.csv in the input folder


class VGGSoundSource:
    """The segments of VGGSound's list in a folder of downloaded files; see the module's text."""

    sound_folder = None

    def __init__(self, options: VGGSoundOptions, folder: Path) -> None:
        """Raise UserError if there is no list."""
        self.folder, self._split = folder, options.split
        self._list = Path(options.list) if options.list else folder / "vggsound.csv"
        if folder.is_dir() and not self._list.is_file():
            raise UserError(f"source.list={self._list}: no such file; give VGGSound's list, vggsound.csv")

    def videos(self) -> list[Video]:
        """Return one video for each row, one for each video that no row uses, then all other files.

        Raises UserError if there are no videos, or the list has no rows or cannot be read.
        """
        found = find_videos(self.folder)
        files = SegmentFiles(found.videos)
        videos = [self._video(number, row, files) for number, row in _read(self._list)]
        if not videos:
            raise UserError(f"{self._list}: lists no segments")
        return files.without_wrong_guesses(videos) + files.unused(found.videos) + found.others

    def _video(self, number: int, row: list[str], files: SegmentFiles) -> Video:
        where = f"{self._list.name}:{number}"
        try:
            segment, label, split = _parse(row)
        except ValueError as error:
            return Video(where, origin=where, reason="bad_row", detail=str(error))
        if not files.add(segment):
            text = f"{segment.youtube_id} from {segment.start:g} s on is listed twice"
            return Video(where, origin=segment.youtube_id, reason="duplicate_row", detail=text)
        return segment_video(self.folder, segment, files, (label,), self._split or split)


def _read(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the columns of each line that is not empty; raise UserError if ``file`` is no list."""
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), ""), 1):
                if len(line) == MAX_LINE:
                    raise UserError(f"{file}: line {number} has {MAX_LINE} characters or more: no segment list")
                if not line.isspace():
                    yield number, next(csv.reader([line], skipinitialspace=True), [])
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None


def _parse(row: list[str]) -> tuple[Segment, str, str]:
    """Return the segment, the label and the split of ``row``; raise ValueError saying what is wrong with it."""
    text = ",".join(row)[:100]
    if len(row) != 4 or row[3].strip() not in ("train", "test"):
        raise ValueError(f'{text!r} is no row of: YouTube id, start in seconds, "label", train or test')
    youtube_id, start, label = (value.strip() for value in row[:3])
    named = parse_name(youtube_id)
    if named is None or named.youtube_id != youtube_id:
        raise ValueError(f"{youtube_id!r:.100} is no YouTube id")
    if not (start.isascii() and start.isdecimal() and len(start) < 10):
        raise ValueError(f"start {start!r:.100} is no whole number of seconds")
    if not label:
        raise ValueError(f"{text!r} has no label")
    return Segment(youtube_id, float(start), float(start) + SECONDS, (label,)), label, row[3].strip()
