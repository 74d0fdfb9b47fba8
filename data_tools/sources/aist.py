"""AIST++: dances whose file names tell everything, as MM-Diffusion crops them or as the original videos.

    {train,test}/gBR_sBM_cAll_d04_mBR0_ch01….mp4    genre, situation, camera, dancer(s), music, choreography

Files may lie in any tree of folders; anything may follow the choreography in a name. ``source.label`` chooses the part
of the name that is the class; the other parts follow as further labels. All cameras and clips of one
dance share their origin. Where the videos have no sound, ``source.music`` is the folder that holds the music, one file
a piece (mBR0.mp3, mBR0.wav): a dance begins when its music does.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.find_files import find_files

from .files import file_size, find_videos, folder_split
from .source import SourceOptions
from .video import Video

GENRES = {
    "BR": "Break",
    "PO": "Pop",
    "LO": "Lock",
    "MH": "Middle Hip-hop",
    "LH": "LA-style Hip-hop",
    "HO": "House",
    "WA": "Waack",
    "KR": "Krump",
    "JS": "Street Jazz",
    "JB": "Ballet Jazz",
}
MUSIC_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")  # of two files, the first kind is taken
_NAME = re.compile(
    r"g(?P<genre>[A-Z]{2})_(?P<situation>s[A-Z]{2})_(?P<camera>c(?:\d{2}|All))_(?P<dancer>d(?:\d{2}|All)(?:_d\d{2})*)"
    r"_(?P<music>m[A-Z]{2}\d)_(?P<choreography>ch\d{2})(?!\d).*"
)


@dataclass
class AISTOptions(SourceOptions):
    """Settings of ``--source aist``."""

    kind: str = "aist"
    label: Literal["genre", "situation", "camera", "dancer", "music", "choreography"] = "genre"  # the class
    music: str = path_key("")  # for the original videos, which have no sound: the folder of the music files


class AISTSource:
    """All AIST++ videos below a folder; files with other names are dropped as "bad_name"."""

    def __init__(self, options: AISTOptions, folder: Path) -> None:
        self.folder, self.sound_folder = folder, Path(options.music) if options.music else None
        self._label, self._split, self._music = options.label, options.split, options.music

    def videos(self) -> list[Video]:
        """Return every file, videos by path first; raise UserError if none is one, or music is asked for and missing.

        A choreography is counted within its genre, so its label names both ("BR-ch01").
        """
        music = self._find_music()
        found = find_videos(self.folder)
        return [self._video(path, music) for path in found.videos] + found.others

    def _video(self, path: str, music: dict[str, str]) -> Video:
        name = PurePosixPath(path).stem
        parts = _NAME.fullmatch(name)
        size, split = file_size(self.folder, path), self._split or folder_split(self.folder, path)
        if parts is None:
            text = "not named like gBR_sBM_c01_d04_mBR0_ch01.mp4"
            return Video(path, size, origin=name, split=split, reason="bad_name", detail=text)
        labels = parts.groupdict()
        labels["genre"] = GENRES.get(parts["genre"], parts["genre"])
        labels["choreography"] = f"{parts['genre']}-{parts['choreography']}"
        chosen = labels.pop(self._label)
        origin = "_".join((f"g{parts['genre']}", parts["situation"], "cAll", *parts.group("dancer", "music")))
        silent = bool(self._music) and parts["music"] not in music
        return Video(
            path,
            size,
            (chosen, *labels.values()),
            origin=f"{origin}_{parts['choreography']}",
            split=split,
            audio=music.get(parts["music"], ""),
            reason="no_music" if silent else "",
            detail=f"{self._music} holds no {parts['music']} ({', '.join(MUSIC_SUFFIXES)})" if silent else "",
        )

    def _find_music(self) -> dict[str, str]:
        """Return the path of each piece's file by the piece's name."""
        if not self._music:
            return {}
        paths = find_files(Path(self._music))
        files = [path for path in paths if PurePosixPath(path).suffix.lower() in MUSIC_SUFFIXES]
        if not files:
            raise UserError(f"{self._music}: holds no music ({', '.join(MUSIC_SUFFIXES)})")
        files.sort(key=lambda path: MUSIC_SUFFIXES.index(PurePosixPath(path).suffix.lower()))  # stable: then by path
        return {PurePosixPath(path).stem: path for path in reversed(files)}
