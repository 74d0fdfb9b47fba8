"""Landscape as MM-Diffusion distributes it: trees of short mp4 files with sound, in nine classes.

    {train,test}/FILE.mp4    {train,test}/CLASS/FILE.mp4    CLASS/FILE.mp4

The class comes from a list (``source.list``: columns ``path``, or just the file's name, and ``label``), else from the
innermost folder that is called like one, else from the file's own name ("fire_crackling_141_2_1.mp4"). A file that none
of them tells has no class. Clips of one recording ("ID_clip_3.mp4", "wind_noise_12_4.mp4") share their origin.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmldm_scale.common.addresses import path_key

from .files import file_size, find_videos, folder_split
from .listing import read_labels, relative_path
from .source import SourceOptions
from .tables import read_rows
from .unicode_forms import same_form
from .video import Video

CLASSES = {  # by the letters that each begins with in any of its spellings ("fire_cracking", "underwater burbling")
    "explosion": "explosion",
    "firecr": "fire crackling",
    "raining": "raining",
    "splashingw": "splashing water",
    "squishingw": "squishing water",
    "thunder": "thunder",
    "underwaterb": "underwater bubbling",
    "waterfallb": "waterfall burbling",
    "windn": "wind noise",
}
_CLIP = re.compile(r"(.+?)_clip_\d.*|([A-Za-z_]+_\d+)(?:_\d+)+")


@dataclass
class LandscapeOptions(SourceOptions):
    """Settings of ``--source landscape``."""

    kind: str = "landscape"
    # a table of classes: columns path (or the file's name alone) and label; "": folders and names tell
    list: str = path_key("")


class LandscapeSource:
    """All media files of a Landscape tree; with a list, those that it names."""

    def __init__(self, options: LandscapeOptions, folder: Path) -> None:
        self.folder = folder
        self.sound_folder: Path | None = None
        self._split = options.split
        self._list = Path(options.list) if options.list else None

    def videos(self) -> list[Video]:
        """Return the videos sorted by path, then rows of the list that fit none, then all other files.

        Raises UserError if there is no video.
        """
        found = find_videos(self.folder)
        paths = found.videos
        if self._list is None:
            return [self._video(path, landscape_class(path)) for path in paths] + found.others
        labels, faults = self._read_list(self._list, paths)
        listed = [
            self._video(path, labels.get(path, ()), reason="" if path in labels else "not_listed") for path in paths
        ]
        return listed + faults + found.others

    def _video(self, path: str, labels: tuple[str, ...], reason: str = "") -> Video:
        name = PurePosixPath(path).stem
        clip = _CLIP.fullmatch(name)
        return Video(
            path,
            file_size(self.folder, path),
            labels,
            origin=(clip[1] or clip[2]) if clip else name,
            split=self._split or folder_split(self.folder, path),
            reason=reason,
            detail=f"{self._list} does not name it" if reason else "",
        )

    def _read_list(self, file: Path, paths: list[str]) -> tuple[dict[str, tuple[str, ...]], list[Video]]:
        """Return the labels by path, and a dropped video for each row that gives none."""
        by_name: dict[str, list[str]] = {}
        for path in paths:
            by_name.setdefault(same_form(PurePosixPath(path).name), []).append(path)
        known = {same_form(path): path for path in paths} | {path: path for path in paths}
        labels: dict[str, tuple[str, ...]] = {}
        faults: list[Video] = []
        for number, row in read_rows(file, ("path", "label", "labels")):
            where = f"{file.name}:{number}"
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                path, row_labels = relative_path(row.get("path")), read_labels(row)
                if not row_labels:
                    raise ValueError(f"no label for {path!r}")
            except ValueError as error:
                faults.append(Video(where, origin=where, reason="bad_row", detail=str(error)))
                continue
            exact = known.get(path) or known.get(same_form(path))
            files = [exact] if exact else by_name.get(same_form(path), [])
            if len(files) != 1:
                text = f"{path!r} is {' and '.join(files[:2])}" if files else f"no file is called {path!r}"
                faults.append(Video(where, origin=where, reason="two_files" if files else "no_file", detail=text))
            elif files[0] in labels:
                text = f"{path!r} is listed twice"
                faults.append(Video(where, origin=where, reason="duplicate_row", detail=text))
            else:
                labels[files[0]] = row_labels
        return labels, faults


def landscape_class(path: str) -> tuple[str, ...]:
    """Return the class that the folders or the name of ``path`` tell, as labels; () if they tell none."""
    parts = PurePosixPath(path).with_suffix("").parts
    for name in (*reversed(parts[:-1]), parts[-1]):
        letters = re.sub("[^a-z]", "", name.lower())
        for beginning, label in CLASSES.items():
            if letters.startswith(beginning):
                return (label,)
    return ()
