"""Finds the files of a source's folder in one pass, and says of each that is no video what it is.

``find_videos(folder)`` returns the paths that may be videos, and a dropped entry for every other file, so that nothing
below the folder stays uncounted. A file's name decides only what is certainly no video (:data:`KINDS`). A file with a
suffix that is not known, or without one, is a candidate like a video: opening it shows what it is, which is done in
processes that may crash.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.media.decode import SUFFIXES
from mmldm_scale.media.find_files import find_files

from .video import BY_NAME, Video

SPLITS = ("train", "val", "validation", "test", "eval")  # folders that are parts of a data set
NOT_A_VIDEO, HIDDEN_FILE = BY_NAME

_SUFFIXES_OF_KINDS = {
    "picture": "ai arw avif bmp cr2 cr3 cur dng emf eps exr heic heif hdr icns ico j2k jfif jp2 jpe jpeg jpg jxl nef "
    "pbm pgm png pnm ppm psd raw svg tga tif tiff webp xcf",
    "sound": "aac ac3 aif aifc aiff alac amr ape au caf dts eac3 flac m4a m4b m4p mid midi mka mp2 mp3 mpc mpga oga "
    "opus ra snd tta wav wave weba wma wv",
    "text": "ass bib cfg conf css csv description doc docx htm html idx info ini ipynb js json json5 jsonl key lrc log "
    "lock m3u m3u8 md md5 mpd nfo odt pdf ppt pptx prproj py rst rtf sbv sh sha1 sha256 sha512 smi srt ssa sub tex "
    "toml tsv ttml txt url vtt xls xlsx xml xspf yaml yml",
    "archive": "7z br bz2 gz lz lz4 lzma rar tar tbz2 tgz txz xz zip zst",
    "data": "arrow avro ckpt db feather h5 hdf5 lmdb mat mdb msgpack npy npz onnx parquet pb pickle pkl pt pth "
    "safetensors sqlite sqlite3 tfrecord",
    "unfinished download": "aria2 crdownload download part partial tmp ytdl",
}
KINDS = {f".{suffix}": kind for kind, suffixes in _SUFFIXES_OF_KINDS.items() for suffix in suffixes.split()}
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # of Windows and macOS, in small letters


@dataclass(frozen=True)
class FoundFiles:
    """The files below a folder.

    Attributes:
        videos: paths relative to the folder, sorted, of what may be a video.
        others: one dropped entry for each other file, sorted by path.
    """

    videos: list[str]
    others: list[Video]


def find_videos(folder: Path) -> FoundFiles:
    """Return the files below ``folder``, walked as :func:`find_files` does; raise UserError if none may be a video."""
    videos: list[str] = []
    others: list[Video] = []
    for path in find_files(folder):
        other = named_other(path)
        if other is None:
            videos.append(path)
        else:
            others.append(other)
    if not videos:
        counted = f" among its {len(others)} files" if others else ""
        raise UserError(f"{folder}: holds no videos{counted} ({', '.join(sorted(SUFFIXES))}, …)")
    return FoundFiles(videos, others)


def named_other(path: str) -> Video | None:
    """Return the dropped entry of a file whose name says that it is no video, None if it may be one."""
    kind = kind_of(path)
    if kind == HIDDEN_FILE:
        return Video(path, reason=HIDDEN_FILE, detail="hidden or system file")
    return None if kind is None else Video(path, reason=NOT_A_VIDEO, detail=kind)


def kind_of(path: str) -> str | None:
    """Return what a file called ``path`` is: HIDDEN_FILE, a kind of :data:`KINDS`, or None if it may be a video."""
    name = path.rpartition("/")[2]
    if name.startswith(".") or name.lower() in _SYSTEM_FILES:
        return HIDDEN_FILE
    return KINDS.get(os.path.splitext(name)[1].lower())


def file_size(folder: Path, path: str) -> int:
    """Return the bytes of a file, 0 for a dangling link and what is not ours to look at: probing will say which."""
    try:
        return os.stat(os.path.join(folder, path)).st_size
    except OSError:
        return 0


def folder_split(folder: Path, path: str) -> str:
    """Return the innermost folder of ``folder/path`` (``folder`` itself included) that is one of SPLITS, or ""."""
    parents = [os.path.basename(os.path.abspath(folder)), *path.split("/")[:-1]]
    return next((name.lower() for name in reversed(parents) if name.lower() in SPLITS), "")
